//! cuBLAS and cuBLASLt: products against f64, and wrong arguments.

use cudarc::cublas::sys::cublasOperation_t::{self, CUBLAS_OP_N, CUBLAS_OP_T};
use cudarc::cublas::sys::{cublasComputeType_t, cublasGemmAlgo_t, cublasStatus_t, cudaDataType_t};
use cudarc::cublas::{CudaBlas, Gemm, GemmConfig, StridedBatchedConfig, result};
use cudarc::cublaslt::{CudaBlasLT, Matmul, MatmulConfig};
use cudarc::driver::{CudaContext, CudaSlice, DevicePtr, DevicePtrMut};
use gpu_emulator::Device;
use half::bf16;

use crate::numbers::floats;

fn halves(count: usize, seed: u32) -> Vec<bf16> {
    floats(count, seed, 1.0).into_iter().map(bf16::from_f32).collect()
}

/// Column-major: element (i, j) of op(X).
fn element(x: &[f64], leading: usize, transposed: bool, i: usize, j: usize) -> f64 {
    if transposed { x[i * leading + j] } else { x[j * leading + i] }
}

fn config(transposed: [bool; 2], [m, n, k]: [usize; 3], leading: [usize; 3], beta: f32) -> GemmConfig<f32> {
    let op = |transposed| -> cublasOperation_t { if transposed { CUBLAS_OP_T } else { CUBLAS_OP_N } };
    let [transa, transb] = transposed.map(op);
    let [m, n, k, lda, ldb, ldc] = [m, n, k, leading[0], leading[1], leading[2]].map(|x| x as i32);
    GemmConfig { transa, transb, m, n, k, alpha: 0.5, lda, ldb, beta, ldc }
}

#[test]
fn all_transposes_and_leading_dimensions() {
    Device::new().run(|| {
        let stream = CudaContext::new(0).unwrap().default_stream();
        let blas = CudaBlas::new(stream.clone()).unwrap();
        let (m, n, k, batch) = (5, 7, 11, 3);
        for case in 0..8 {
            let transposed = [case & 1 == 1, case & 2 == 2];
            let pad = case / 4 * 3;
            let rows = [if transposed[0] { k } else { m }, if transposed[1] { n } else { k }, m];
            let columns = [if transposed[0] { m } else { k }, if transposed[1] { k } else { n }, n];
            let leading = rows.map(|rows| rows + pad);
            let len: [usize; 3] = std::array::from_fn(|i| leading[i] * columns[i]);
            let values: Vec<Vec<f32>> = (0..3).map(|i| floats(batch * len[i], (20 + case + i) as u32, 1.0)).collect();
            let [a, b, mut c] = [0, 1, 2].map(|i| stream.clone_htod(&values[i]).unwrap());
            let gemm = config(transposed, [m, n, k], leading, if pad == 0 { 0.0 } else { 2.0 });
            let strides = len.map(|len| len as i64);
            let batched = StridedBatchedConfig {
                gemm,
                batch_size: batch as i32,
                stride_a: strides[0],
                stride_b: strides[1],
                stride_c: strides[2],
            };
            unsafe { blas.gemm_strided_batched(batched, &a, &b, &mut c) }.unwrap();
            let found = stream.clone_dtoh(&c).unwrap();
            let long: Vec<Vec<f64>> = values.iter().map(|x| x.iter().map(|x| *x as f64).collect()).collect();
            for q in 0..batch {
                let [x, y, z] = [0, 1, 2].map(|i| &long[i][q * len[i]..]);
                for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                    let product =
                        |l| element(x, leading[0], transposed[0], i, l) * element(y, leading[1], transposed[1], l, j);
                    let wanted =
                        0.5 * (0..k).map(product).sum::<f64>() + gemm.beta as f64 * element(z, leading[2], false, i, j);
                    let found = found[q * len[2] + j * leading[2] + i] as f64;
                    assert!(
                        (found - wanted).abs() < 1e-5,
                        "case {case}, ({i}, {j}) of {q}: {found}, expected {wanted}"
                    );
                }
            }
            // What lies between the columns is not touched.
            let between = (0..batch * len[2]).filter(|at| at % leading[2] >= m);
            assert!(between.into_iter().all(|at| found[at] == values[2][at]));
        }
    });
}

/// Row-major Y[M, N] = X[M, K] W[N, K]^T + bias, as cuBLASLt sees it.
#[test]
fn cublaslt_with_bias() {
    Device::new().run(|| {
        let stream = CudaContext::new(0).unwrap().default_stream();
        let blas = CudaBlasLT::new(stream.clone()).unwrap();
        let (m, n, k) = (6, 16, 24);
        let (x, w, bias) = (halves(m * k, 30), halves(n * k, 31), halves(n, 32));
        let [on_x, on_w, on_bias] = [&x, &w, &bias].map(|values| stream.clone_htod(values).unwrap());
        let mut y: CudaSlice<bf16> = unsafe { stream.alloc(m * n) }.unwrap();
        let config = MatmulConfig {
            transa: true,
            transb: false,
            transc: false,
            m: n as u64,
            n: m as u64,
            k: k as u64,
            alpha: 1.0,
            lda: k as i64,
            ldb: k as i64,
            beta: 0.0,
            ldc: n as i64,
            stride_a: None,
            stride_b: None,
            stride_c: None,
            stride_bias: None,
            batch_size: None,
        };
        unsafe { blas.matmul(config, &on_w, &on_x, &mut y, Some(&on_bias), None) }.unwrap();
        let found = stream.clone_dtoh(&y).unwrap();
        for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let sum: f64 = (0..k).map(|l| x[i * k + l].to_f64() * w[j * k + l].to_f64()).sum();
            let wanted = sum + bias[j].to_f64();
            let found = found[i * n + j].to_f64();
            // Half a unit of the last of eight bits.
            assert!((found - wanted).abs() <= wanted.abs() / 256.0 + 1e-5, "({i}, {j}): {found}, expected {wanted}");
        }
    });
}

struct Wrong {
    leading: [i32; 3],
    /// Elements that A, B and C have.
    len: [usize; 3],
    compute: cublasComputeType_t,
    /// C begins this many elements into A; usize::MAX: C is its own.
    overlap: usize,
    unwritten: bool,
}

const RIGHT: Wrong = Wrong {
    leading: [8, 12, 8],
    len: [96, 72, 48],
    compute: cublasComputeType_t::CUBLAS_COMPUTE_32F,
    overlap: usize::MAX,
    unwritten: false,
};

/// C[8, 6] = A[8, 12] B[12, 6] in bf16.
fn product(wrong: &Wrong) -> Result<(), cublasStatus_t> {
    let stream = CudaContext::new(0).unwrap().default_stream();
    let blas = CudaBlas::new(stream.clone()).unwrap();
    let mut a = stream.clone_htod(&halves(wrong.len[0], 40)).unwrap();
    let b = match wrong.unwritten {
        true => unsafe { stream.alloc::<bf16>(wrong.len[1]) }.unwrap(),
        false => stream.clone_htod(&halves(wrong.len[1], 41)).unwrap(),
    };
    let mut c = unsafe { stream.alloc::<bf16>(wrong.len[2]) }.unwrap();
    let (alpha, beta) = (1f32, 0f32);
    let kind = cudaDataType_t::CUDA_R_16BF;
    let [lda, ldb, ldc] = wrong.leading;
    let on_a = a.device_ptr_mut(&stream).0;
    let on_b = b.device_ptr(&stream).0;
    let on_c = match wrong.overlap {
        usize::MAX => c.device_ptr_mut(&stream).0,
        elements => on_a + 2 * elements as u64,
    };
    unsafe {
        result::gemm_ex(
            *blas.handle(),
            CUBLAS_OP_N,
            CUBLAS_OP_N,
            8,
            6,
            12,
            (&raw const alpha).cast(),
            on_a as *const _,
            kind,
            lda,
            on_b as *const _,
            kind,
            ldb,
            (&raw const beta).cast(),
            on_c as *mut _,
            kind,
            ldc,
            wrong.compute,
            cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .map_err(|error| error.0)?;
    stream.synchronize().map_err(|_| cublasStatus_t::CUBLAS_STATUS_EXECUTION_FAILED)
}

#[test]
fn wrong_arguments() {
    assert!(Device::new().run(|| product(&RIGHT).unwrap()).messages.is_empty());
    let invalid = cublasStatus_t::CUBLAS_STATUS_INVALID_VALUE;
    let cases = [
        (Wrong { leading: [7, 12, 8], ..RIGHT }, invalid, "the leading dimension of A is 7, less than its 8 rows"),
        (Wrong { leading: [8, 6, 8], ..RIGHT }, invalid, "the leading dimension of B is 6, less than its 12 rows"),
        (Wrong { leading: [8, 12, 6], ..RIGHT }, invalid, "the leading dimension of C is 6, less than its 8 rows"),
        (Wrong { leading: [12, 12, 8], ..RIGHT }, invalid, "A: column 11 of matrix 0: 16 bytes at"),
        (Wrong { len: [96, 71, 48], ..RIGHT }, invalid, "B: column 5 of matrix 0: 24 bytes at"),
        (Wrong { len: [96, 72, 47], ..RIGHT }, invalid, "D: column 5 of matrix 0: 16 bytes at"),
        (Wrong { overlap: 40, ..RIGHT }, invalid, "D overlaps A or B"),
        (
            Wrong { compute: cublasComputeType_t::CUBLAS_COMPUTE_16F, ..RIGHT },
            cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED,
            "operands Bf16 and Bf16, compute type 64",
        ),
        (
            Wrong { unwritten: true, ..RIGHT },
            cublasStatus_t::CUBLAS_STATUS_EXECUTION_FAILED,
            "matrix product 8 x 6 x 12: B: byte 0 of allocation 2 of 144 bytes was never written",
        ),
    ];
    for (wrong, status, words) in cases {
        let report = Device::new().run(|| assert_eq!(product(&wrong), Err(status), "{words}"));
        let [message] = &report.messages[..] else { panic!("{words}: {:?}", report.messages) };
        assert!(message.contains(words), "{message:?} does not say {words:?}");
    }
}

/// An algorithm is searched for operands aligned to 256 bytes, if nothing else is said.
#[test]
fn less_aligned_than_the_algorithm_needs() {
    let report = Device::new().run(|| {
        let stream = CudaContext::new(0).unwrap().default_stream();
        let blas = CudaBlasLT::new(stream.clone()).unwrap();
        let (a, b) = (stream.clone_htod(&vec![1f32; 64]).unwrap(), stream.clone_htod(&vec![1f32; 64]).unwrap());
        let mut c = stream.alloc_zeros::<f32>(64).unwrap();
        let config = MatmulConfig {
            transa: false,
            transb: false,
            transc: false,
            m: 4,
            n: 4,
            k: 4,
            alpha: 1.0,
            lda: 4,
            ldb: 4,
            beta: 0.0,
            ldc: 4,
            stride_a: None,
            stride_b: None,
            stride_c: None,
            stride_bias: None,
            batch_size: None,
        };
        let inside = a.slice(4..);
        let whole = b.slice(0..);
        assert!(unsafe { blas.matmul(config, &inside, &whole, &mut c, None, None) }.is_err());
        assert!(unsafe { blas.matmul(config, &whole, &whole, &mut c, None, None) }.is_ok());
    });
    let message = report.messages.concat();
    assert!(message.contains("is not aligned to 256 bytes, which the algorithm was searched for"), "{message}");
}
