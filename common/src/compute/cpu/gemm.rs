//! f32 matrix products with bounds checked, over the crate `gemm`: on one thread, or on all.

use gemm::Parallelism;

/// C = αAB, or C += αAB with `accumulate`, where A is [m, k], B [k, n] and C [m, n], each a slice with its row
/// and column stride (so a transpose is a swap of strides). One thread, and the same bits wherever it is called.
///
/// Panics when a matrix reaches beyond its slice, or when elements of C overlap.
#[allow(clippy::too_many_arguments)] // the signature of BLAS
pub fn gemm(
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    a: &[f32],
    a_row_stride: usize,
    a_col_stride: usize,
    b: &[f32],
    b_row_stride: usize,
    b_col_stride: usize,
    accumulate: bool,
    c: &mut [f32],
    c_row_stride: usize,
    c_col_stride: usize,
) {
    let (a_strides, b_strides) = ((a_row_stride, a_col_stride), (b_row_stride, b_col_stride));
    let c_strides = (c_row_stride, c_col_stride);
    run(m, n, k, alpha, a, a_strides, b, b_strides, accumulate, c, c_strides, Parallelism::None);
}

#[allow(clippy::too_many_arguments)]
fn run(
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    a: &[f32],
    (a_row_stride, a_col_stride): (usize, usize),
    b: &[f32],
    (b_row_stride, b_col_stride): (usize, usize),
    accumulate: bool,
    c: &mut [f32],
    (c_row_stride, c_col_stride): (usize, usize),
    threads: Parallelism,
) {
    if m == 0 || n == 0 {
        return;
    }
    assert!(reach(m, k, a_row_stride, a_col_stride) <= a.len(), "gemm: A [{m}, {k}] is larger than its slice");
    assert!(reach(k, n, b_row_stride, b_col_stride) <= b.len(), "gemm: B [{k}, {n}] is larger than its slice");
    assert!(reach(m, n, c_row_stride, c_col_stride) <= c.len(), "gemm: C [{m}, {n}] is larger than its slice");
    let by_rows = c_row_stride >= (n - 1) * c_col_stride + 1 && (n == 1 || c_col_stride >= 1);
    let by_cols = c_col_stride >= (m - 1) * c_row_stride + 1 && (m == 1 || c_row_stride >= 1);
    assert!(m == 1 || n == 1 || by_rows || by_cols, "gemm: elements of C overlap");
    // SAFETY: every index that [rows, cols, strides] can produce was checked to lie inside its slice; C is
    // borrowed mutably, so it overlaps neither A nor B; its elements are distinct (asserted).
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            c_col_stride as isize,
            c_row_stride as isize,
            accumulate,
            a.as_ptr(),
            a_col_stride as isize,
            a_row_stride as isize,
            b.as_ptr(),
            b_col_stride as isize,
            b_row_stride as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            threads,
        );
    }
}

/// The same product on all threads of the pool. Work is cut by rows and columns of C only, never along k, so the
/// bits do not depend on the number of threads (a test says so). Strides are (row, column).
#[allow(clippy::too_many_arguments)] // the signature of BLAS
pub fn parallel_gemm(
    m: usize,
    n: usize,
    k: usize,
    alpha: f32,
    a: &[f32],
    a_strides: (usize, usize),
    b: &[f32],
    b_strides: (usize, usize),
    accumulate: bool,
    c: &mut [f32],
    c_strides: (usize, usize),
) {
    let threads = Parallelism::Rayon(rayon::current_num_threads());
    run(m, n, k, alpha, a, a_strides, b, b_strides, accumulate, c, c_strides, threads);
}

/// One past the last element that a matrix of this shape touches.
fn reach(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> usize {
    if rows == 0 || cols == 0 {
        return 0;
    }
    let last = (rows - 1).checked_mul(row_stride).zip((cols - 1).checked_mul(col_stride));
    last.and_then(|(r, c)| r.checked_add(c)?.checked_add(1)).expect("gemm: strides overflow")
}
