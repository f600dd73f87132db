//! Products by cuBLASLt. This file alone knows that its matrices are column-major: a row-major matrix is its own
//! transpose there, so that Cᵀ = op(Y)ᵀ·op(X)ᵀ is asked for.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::cublaslt::result::CublasError;
use cudarc::cublaslt::sys::{
    cublasComputeType_t, cublasLtMatmulDescAttributes_t, cublasLtMatmulPreferenceAttributes_t, cudaDataType_t,
};
use cudarc::cublaslt::{result, sys};
use half::bf16;

use super::gpu::Gpu;
use super::memory::{Memory, Ref};
use super::product::{Product, To, Transposed};
use crate::error::{Error, Result};

/// The library, its workspace, and the products that were asked for so far.
pub struct CublasLt {
    handle: sys::cublasLtHandle_t,
    workspace: Memory<u8>,
    planned: Mutex<HashMap<Key, Planned>>,
}

// SAFETY: the handle and what is planned are used under the lock.
unsafe impl Send for CublasLt {}
// SAFETY: as above.
unsafe impl Sync for CublasLt {}

/// What NVIDIA recommends for Hopper; enough for the others.
pub const WORKSPACE: usize = 32 << 20;

/// What an algorithm is chosen by.
#[derive(PartialEq, Eq, Hash)]
struct Key {
    m: usize,
    n: usize,
    k: usize,
    transposed: Transposed,
    leading: [usize; 3],
    /// C in f32.
    wide: bool,
    /// Of X, Y and C, in bytes.
    aligned: [u32; 3],
}

struct Planned {
    description: Description,
    /// The library's A, B and C.
    of_y: Layout,
    of_x: Layout,
    of_c: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl CublasLt {
    /// None where the library is not installed.
    pub fn new(gpu: &Arc<Gpu>) -> Result<Option<CublasLt>> {
        // SAFETY: opens the library, and closes it.
        if !unsafe { sys::is_culib_present() } {
            return Ok(None);
        }
        let handle = result::create_handle().map_err(|CublasError(status)| {
            Error::device(format!("{}: cuBLASLt: {status:?}", gpu.name), "see nvidia-smi, or use --device cpu")
        })?;
        let workspace = Memory::new(gpu, WORKSPACE)?;
        Ok(Some(CublasLt { handle, workspace, planned: Mutex::default() }))
    }

    pub fn run(&self, gpu: &Gpu, p: &Product, x: Ref<bf16>, y: Ref<bf16>, to: &To) {
        if gpu.failed() {
            return;
        }
        let key = Key {
            m: p.m,
            n: p.n,
            k: p.k,
            transposed: p.transposed,
            leading: [p.x_leading, p.y_leading, p.c_leading],
            wide: matches!(to, To::F32(_)),
            aligned: [x.address(), y.address(), to.address()].map(alignment),
        };
        let mut planned = self.planned.lock().unwrap_or_else(PoisonError::into_inner);
        let plan = match planned.get(&key) {
            Some(plan) => Ok(plan),
            None => self.plan(&key).map(|plan| &*planned.entry(key).or_insert(plan)),
        };
        let name = format_args!("product {} × {} × {}", p.m, p.n, p.k);
        let multiply = |plan| gpu.timer().around(gpu, name, || self.multiply(gpu, p, plan, x, y, to));
        if let Err(CublasError(status)) = plan.and_then(multiply) {
            gpu.fail(format!("cuBLASLt: {status:?}: {p:?}"), "install another version of it, or use --device cpu");
        }
    }

    /// Asks for an algorithm.
    fn plan(&self, key: &Key) -> Result<Planned, CublasError> {
        let wide = if key.wide { cudaDataType_t::CUDA_R_32F } else { cudaDataType_t::CUDA_R_16BF };
        let narrow = cudaDataType_t::CUDA_R_16BF;
        let description = Description(result::create_matmul_desc(
            cublasComputeType_t::CUBLAS_COMPUTE_32F,
            cudaDataType_t::CUDA_R_32F,
        )?);
        use cublasLtMatmulDescAttributes_t::{CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB};
        let y_transposed = key.transposed == Transposed::Y;
        let x_transposed = key.transposed == Transposed::X;
        description.set(CUBLASLT_MATMUL_DESC_TRANSA, y_transposed)?;
        description.set(CUBLASLT_MATMUL_DESC_TRANSB, x_transposed)?;
        // Rows and columns as the library sees them: those of the transpose.
        let layout = |kind, columns: usize, rows: usize, leading: usize| {
            result::create_matrix_layout(kind, columns as u64, rows as u64, leading as i64).map(Layout)
        };
        let [x_leading, y_leading, c_leading] = key.leading;
        let (y_columns, y_rows) = if y_transposed { (key.k, key.n) } else { (key.n, key.k) };
        let (x_columns, x_rows) = if x_transposed { (key.m, key.k) } else { (key.k, key.m) };
        let of_y = layout(narrow, y_columns, y_rows, y_leading)?;
        let of_x = layout(narrow, x_columns, x_rows, x_leading)?;
        let of_c = layout(wide, key.n, key.m, c_leading)?;
        let preference = Preference(result::create_matmul_pref()?);
        use cublasLtMatmulPreferenceAttributes_t as Attribute;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE)?;
        let [x_aligned, y_aligned, c_aligned] = key.aligned;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, y_aligned)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, x_aligned)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c_aligned)?;
        preference.set(Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, c_aligned)?;
        // SAFETY: all of these live.
        let found = unsafe {
            let [a, b, c] = [of_y.0, of_x.0, of_c.0];
            result::get_matmul_algo_heuristic(self.handle, description.0, a, b, c, c, preference.0)?
        };
        Ok(Planned { description, of_y, of_x, of_c, algorithm: found.algo })
    }

    fn multiply(
        &self,
        gpu: &Gpu,
        p: &Product,
        plan: &Planned,
        x: Ref<bf16>,
        y: Ref<bf16>,
        to: &To,
    ) -> Result<(), CublasError> {
        let beta = f32::from(u8::from(p.accumulate));
        let c = to.address() as *mut c_void;
        // SAFETY: the caller's views reach as far as the layouts say; all is alive, and the stream keeps the order.
        unsafe {
            result::matmul(
                self.handle,
                plan.description.0,
                (&raw const p.alpha).cast(),
                (&raw const beta).cast(),
                y.address() as *const c_void,
                plan.of_y.0,
                x.address() as *const c_void,
                plan.of_x.0,
                c,
                plan.of_c.0,
                c,
                plan.of_c.0,
                &plan.algorithm,
                self.workspace.all().address() as *mut c_void,
                WORKSPACE,
                gpu.stream.cu_stream().cast(),
            )
        }
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: created in `new`, used by nobody any more.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// The largest power of two that divides an address, at most 256.
fn alignment(address: u64) -> u32 {
    1 << address.trailing_zeros().min(8)
}

struct Description(sys::cublasLtMatmulDesc_t);
struct Layout(sys::cublasLtMatrixLayout_t);
struct Preference(sys::cublasLtMatmulPreference_t);

impl Description {
    fn set(&self, which: cublasLtMatmulDescAttributes_t, transposed: bool) -> Result<(), CublasError> {
        // cublasOperation_t: CUBLAS_OP_N is 0, CUBLAS_OP_T is 1.
        let value = i32::from(transposed);
        // SAFETY: the description lives, and takes an operation of this size.
        unsafe { result::set_matmul_desc_attribute(self.0, which, (&raw const value).cast(), size_of_val(&value)) }
    }
}

impl Preference {
    /// `value` has the type that the attribute is documented with.
    fn set<T: Copy>(&self, which: cublasLtMatmulPreferenceAttributes_t, value: T) -> Result<(), CublasError> {
        // SAFETY: the preference lives, and the value is read during the call.
        unsafe { result::set_matmul_pref_attribute(self.0, which, (&raw const value).cast(), size_of::<T>()) }
    }
}

macro_rules! destroyed_by {
    ($($type:ident: $destroy:ident),*) => { $(
        impl Drop for $type {
            fn drop(&mut self) {
                // SAFETY: created by the library, and destroyed once.
                let _ = unsafe { result::$destroy(self.0) };
            }
        }
    )* };
}

destroyed_by!(Description: destroy_matmul_desc, Layout: destroy_matrix_layout, Preference: destroy_matmul_pref);
