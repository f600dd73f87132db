//! The entry points of cuBLAS for products of matrices.

use super::Status;
use super::product::{Element, Matrix, Product};
use crate::driver::{In, Out, State, Work, entry_points};

/// cublasComputeType_t: sums in f32, whatever is done with f32 operands.
pub fn sums_in_f32(compute: u32) -> bool {
    matches!(compute, 68 | 69 | 74 | 75 | 77)
}

/// One operand as the call gives it.
struct Given {
    address: u64,
    element: u32,
    leading: i64,
    stride: i64,
}

struct Call {
    transpose: [u32; 2],
    /// m, n, k
    shape: [i32; 3],
    factors: [Option<f32>; 2],
    a: Given,
    b: Given,
    c: Given,
    batch: i32,
    compute: u32,
}

impl State {
    pub(super) fn wrong(&mut self, status: Status, what: String) -> Status {
        self.say(format!("matrix product: {what}"));
        status
    }

    fn product(&mut self, handle: u64, call: Call) -> Result<(), Status> {
        let stream = *self.blas.cublas.get(&handle).ok_or(Status::NotInitialized)?;
        let [m, n, k] = call.shape;
        if m < 0 || n < 0 || k < 0 || call.batch < 0 || call.transpose.iter().any(|t| *t > 2) {
            return Err(self.wrong(Status::InvalidValue, format!("m {m}, n {n}, k {k}, {} of them", call.batch)));
        }
        let [Some(alpha), Some(beta)] = call.factors else {
            return Err(self.wrong(Status::InvalidValue, "alpha or beta is null".into()));
        };
        let elements = [&call.a, &call.b, &call.c].map(|given| Element::from_number(given.element));
        let [Some(element_a), Some(element_b), Some(element_c)] = elements else {
            return Err(self.wrong(Status::NotSupported, "a type of element that is not modelled".into()));
        };
        if !sums_in_f32(call.compute) || element_a != element_b {
            let what = format!("operands {element_a:?} and {element_b:?}, compute type {}", call.compute);
            return Err(self.wrong(Status::NotSupported, what));
        }
        let transpose = call.transpose.map(|transpose| transpose != 0);
        let matrix = |given: &Given, element, rows: i32, columns: i32, turned: bool| {
            let (rows, columns) = if turned { (columns, rows) } else { (rows, columns) };
            let (rows, columns, address) = (rows as usize, columns as usize, given.address);
            Matrix { address, element, rows, columns, leading: given.leading, stride: given.stride }
        };
        let c = matrix(&call.c, element_c, m, n, false);
        let product = Product {
            transpose,
            alpha,
            beta,
            a: matrix(&call.a, element_a, m, k, transpose[0]),
            b: matrix(&call.b, element_b, k, n, transpose[1]),
            c,
            d: c,
            batch: call.batch as usize,
            bias: None,
            workspace: None,
        };
        self.submit_product(stream, product)
    }

    pub(super) fn submit_product(&mut self, stream: u64, product: Product) -> Result<(), Status> {
        if let Err(what) = product.check(&self.memory) {
            return Err(self.wrong(Status::InvalidValue, what));
        }
        Ok(self.submit(stream, Work::Product(Box::new(product)))?)
    }
}

entry_points! {
    fn cublasCreate_v2(to: Out<u64>) |state| {
        let handle = state.handle();
        state.blas.cublas.insert(handle, 0);
        Ok(to.set(handle)?)
    }
    fn cublasDestroy_v2(handle: u64) |state| {
        state.blas.cublas.remove(&handle).map(drop).ok_or(Status::NotInitialized)
    }
    fn cublasSetStream_v2(handle: u64, stream: u64) |state| {
        *state.blas.cublas.get_mut(&handle).ok_or(Status::NotInitialized)? = stream;
        Ok(())
    }
    fn cublasGetVersion_v2(handle: u64, version: Out<i32>) |state| {
        if !state.blas.cublas.contains_key(&handle) {
            return Err(Status::NotInitialized);
        }
        Ok(version.set(120000)?)
    }
    fn cublasSetMathMode(handle: u64, _mode: u32) |state| {
        state.blas.cublas.get(&handle).map(drop).ok_or(Status::NotInitialized)
    }
    fn cublasSetWorkspace_v2(handle: u64, _at: u64, _bytes: usize) |state| {
        state.blas.cublas.get(&handle).map(drop).ok_or(Status::NotInitialized)
    }
    fn cublasGemmEx(
        handle: u64, transpose_a: u32, transpose_b: u32, m: i32, n: i32, k: i32, alpha: In<f32>,
        a: u64, element_a: u32, leading_a: i32, b: u64, element_b: u32, leading_b: i32, beta: In<f32>,
        c: u64, element_c: u32, leading_c: i32, compute: u32, _algorithm: i32,
    ) |state| {
        let given = |address, element, leading: i32| Given { address, element, leading: leading as i64, stride: 0 };
        state.product(handle, Call {
            transpose: [transpose_a, transpose_b],
            shape: [m, n, k],
            factors: [alpha.get(), beta.get()],
            a: given(a, element_a, leading_a),
            b: given(b, element_b, leading_b),
            c: given(c, element_c, leading_c),
            batch: 1,
            compute,
        })
    }
    fn cublasGemmStridedBatchedEx(
        handle: u64, transpose_a: u32, transpose_b: u32, m: i32, n: i32, k: i32, alpha: In<f32>,
        a: u64, element_a: u32, leading_a: i32, stride_a: i64,
        b: u64, element_b: u32, leading_b: i32, stride_b: i64, beta: In<f32>,
        c: u64, element_c: u32, leading_c: i32, stride_c: i64, batch: i32, compute: u32, _algorithm: i32,
    ) |state| {
        let given = |address, element, leading: i32, stride| {
            Given { address, element, leading: leading as i64, stride }
        };
        state.product(handle, Call {
            transpose: [transpose_a, transpose_b],
            shape: [m, n, k],
            factors: [alpha.get(), beta.get()],
            a: given(a, element_a, leading_a, stride_a),
            b: given(b, element_b, leading_b, stride_b),
            c: given(c, element_c, leading_c, stride_c),
            batch,
            compute,
        })
    }
    fn cublasSgemm_v2(
        handle: u64, transpose_a: u32, transpose_b: u32, m: i32, n: i32, k: i32, alpha: In<f32>,
        a: u64, leading_a: i32, b: u64, leading_b: i32, beta: In<f32>, c: u64, leading_c: i32,
    ) |state| {
        let given = |address, leading: i32| Given { address, element: 0, leading: leading as i64, stride: 0 };
        state.product(handle, Call {
            transpose: [transpose_a, transpose_b],
            shape: [m, n, k],
            factors: [alpha.get(), beta.get()],
            a: given(a, leading_a),
            b: given(b, leading_b),
            c: given(c, leading_c),
            batch: 1,
            compute: 68,
        })
    }
    fn cublasSgemmStridedBatched(
        handle: u64, transpose_a: u32, transpose_b: u32, m: i32, n: i32, k: i32, alpha: In<f32>,
        a: u64, leading_a: i32, stride_a: i64, b: u64, leading_b: i32, stride_b: i64, beta: In<f32>,
        c: u64, leading_c: i32, stride_c: i64, batch: i32,
    ) |state| {
        let given = |address, leading: i32, stride| Given { address, element: 0, leading: leading as i64, stride };
        state.product(handle, Call {
            transpose: [transpose_a, transpose_b],
            shape: [m, n, k],
            factors: [alpha.get(), beta.get()],
            a: given(a, leading_a, stride_a),
            b: given(b, leading_b, stride_b),
            c: given(c, leading_c, stride_c),
            batch,
            compute: 68,
        })
    }
}
