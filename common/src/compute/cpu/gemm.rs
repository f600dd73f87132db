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
    let apart = (m == 1 || c_row_stride > 0) && (n == 1 || c_col_stride > 0);
    let nested = m == 1 || n == 1 || c_row_stride > (n - 1) * c_col_stride || c_col_stride > (m - 1) * c_row_stride;
    assert!(apart && nested, "gemm: elements of C overlap");
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

#[cfg(test)]
mod tests {
    use super::gemm;

    /// Small integers, so that every product and sum is exact.
    fn integers(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i * 7 % 13) as f32 - 6.0).collect()
    }

    #[test]
    fn transposes_and_accumulation() {
        for (m, n, k) in [(1, 1, 1), (3, 5, 7), (1, 40, 70), (40, 1, 70), (50, 33, 64), (2, 3, 0)] {
            let (a, b) = (integers(m * k), integers(k * n));
            // (row stride, column stride) of each matrix by rows and by columns
            for (ars, acs) in [(k, 1), (1, m)] {
                for (brs, bcs) in [(n, 1), (1, k)] {
                    let mut c = vec![1.0; m * n];
                    gemm(m, n, k, 2.0, &a, ars, acs, &b, brs, bcs, true, &mut c, n, 1);
                    let mut d = vec![f32::NAN; m * n];
                    gemm(m, n, k, 2.0, &a, ars, acs, &b, brs, bcs, false, &mut d, 1, m);
                    for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                        let sum: f32 = (0..k).map(|p| a[i * ars + p * acs] * b[p * brs + j * bcs]).sum();
                        assert_eq!((c[i * n + j], d[i + j * m]), (1.0 + 2.0 * sum, 2.0 * sum), "{m} {n} {k}");
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "B [3, 4] is larger than its slice")]
    fn reaching_beyond_a_slice_panics() {
        gemm(2, 4, 3, 1.0, &[0.0; 6], 3, 1, &[0.0; 11], 4, 1, false, &mut [0.0; 8], 4, 1);
    }

    #[test]
    #[should_panic(expected = "elements of C overlap")]
    fn overlapping_results_panic() {
        gemm(2, 4, 3, 1.0, &[0.0; 6], 3, 1, &[0.0; 12], 4, 1, false, &mut [0.0; 8], 2, 1);
    }
}
