//! cuBLASLt: descriptors, the search for an algorithm, and the product. An algorithm remembers the alignment that it
//! was searched for (256 bytes, if the preference does not say less) and the workspace it asks for: the product refuses
//! operands that are less aligned and workspaces that are smaller, where the real library may fail or not.

use std::collections::HashMap;

use super::Status;
use super::cublas::sums_in_f32;
use super::product::{Element, Matrix, Product};
use crate::driver::{In, Out, State, entry_points};

/// A layout, a description of a product, or a preference.
#[derive(Clone, Default)]
pub struct Descriptor {
    attributes: HashMap<u32, Vec<u8>>,
}

impl Descriptor {
    fn with(values: &[(u32, u64)]) -> Self {
        let attributes = values.iter().map(|(which, value)| (*which, value.to_le_bytes().to_vec())).collect();
        Descriptor { attributes }
    }

    /// A number of up to 8 bytes.
    fn number(&self, which: u32, default: u64) -> u64 {
        self.attributes.get(&which).map_or(default, |bytes| {
            let mut value = [0; 8];
            let len = bytes.len().min(8);
            value[..len].copy_from_slice(&bytes[..len]);
            u64::from_le_bytes(value)
        })
    }
}

mod layout {
    pub const TYPE: u32 = 0;
    pub const ORDER: u32 = 1;
    pub const ROWS: u32 = 2;
    pub const COLUMNS: u32 = 3;
    pub const LEADING: u32 = 4;
    pub const BATCH: u32 = 5;
    pub const STRIDE: u32 = 6;
    /// Of the order.
    pub const COLUMN_MAJOR: u64 = 0;
}

mod description {
    pub const COMPUTE: u32 = 0;
    pub const SCALE: u32 = 1;
    pub const POINTER_MODE: u32 = 2;
    pub const TRANSPOSE_A: u32 = 3;
    pub const TRANSPOSE_B: u32 = 4;
    pub const TRANSPOSE_C: u32 = 5;
    pub const EPILOGUE: u32 = 7;
    pub const BIAS: u32 = 8;
    pub const BIAS_TYPE: u32 = 26;
    pub const EPILOGUE_DEFAULT: u64 = 1;
    pub const EPILOGUE_BIAS: u64 = 4;
}

mod preference {
    pub const WORKSPACE: u32 = 1;
    /// Of A; those of B, C and D follow.
    pub const ALIGNMENT: u32 = 5;
    pub const ALIGNMENT_DEFAULT: u64 = 256;
}

/// cublasLtMatmulAlgo_t: 64 bytes of our own.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Algorithm {
    mark: u64,
    alignment: [u64; 4],
    workspace: u64,
    unused: [u64; 2],
}

const MARK: u64 = 0x6770_7565_6d75_6c74;

/// cublasLtMatmulHeuristicResult_t
#[repr(C)]
pub struct Found {
    algorithm: Algorithm,
    workspace: usize,
    status: u32,
    waves: f32,
    reserved: [i32; 4],
}

/// The arguments of a product.
struct Arguments {
    description: u64,
    factors: [Option<f32>; 2],
    addresses: [u64; 4],
    layouts: [u64; 4],
    algorithm: Option<Algorithm>,
    workspace: (u64, usize),
}

impl State {
    fn descriptor(&mut self, handle: u64) -> Result<Descriptor, Status> {
        match self.blas.descriptors.get(&handle) {
            Some(descriptor) => Ok(descriptor.clone()),
            None => Err(self.wrong(Status::InvalidValue, "a descriptor that is not there".into())),
        }
    }

    fn create_descriptor(&mut self, values: &[(u32, u64)]) -> u64 {
        let handle = self.handle();
        self.blas.descriptors.insert(handle, Descriptor::with(values));
        handle
    }

    fn destroy_descriptor(&mut self, handle: u64) -> Result<(), Status> {
        self.blas.descriptors.remove(&handle).map(drop).ok_or(Status::InvalidValue)
    }

    fn set_attribute(&mut self, handle: u64, which: u32, value: Vec<u8>) -> Result<(), Status> {
        let descriptor = self.blas.descriptors.get_mut(&handle).ok_or(Status::InvalidValue)?;
        descriptor.attributes.insert(which, value);
        Ok(())
    }

    fn lt(&self, handle: u64) -> Result<(), Status> {
        if self.blas.cublaslt.contains(&handle) { Ok(()) } else { Err(Status::NotInitialized) }
    }

    fn matrix(&mut self, handle: u64, address: u64) -> Result<(Matrix, usize), Status> {
        let layout = self.descriptor(handle)?;
        let element = Element::from_number(layout.number(layout::TYPE, 0) as u32);
        let (Some(element), layout::COLUMN_MAJOR) = (element, layout.number(layout::ORDER, 0)) else {
            return Err(self.wrong(Status::NotSupported, "a type or order of a matrix that is not modelled".into()));
        };
        let matrix = Matrix {
            address,
            element,
            rows: layout.number(layout::ROWS, 0) as usize,
            columns: layout.number(layout::COLUMNS, 0) as usize,
            leading: layout.number(layout::LEADING, 0) as i64,
            stride: layout.number(layout::STRIDE, 0) as i64,
        };
        Ok((matrix, layout.number(layout::BATCH, 1) as u32 as usize))
    }

    /// The product that descriptor and layouts describe; what the library does not support is refused.
    fn described(&mut self, arguments: &Arguments) -> Result<Product, Status> {
        let description = self.descriptor(arguments.description)?;
        let mut matrices = Vec::new();
        for (layout, address) in arguments.layouts.iter().zip(arguments.addresses) {
            matrices.push(self.matrix(*layout, address)?);
        }
        let [(a, batch), (b, batch_b), (c, batch_c), (d, batch_d)] = matrices[..] else {
            return Err(Status::InvalidValue);
        };
        if [batch_b, batch_c, batch_d].iter().any(|other| *other != batch) {
            return Err(self.wrong(Status::InvalidValue, "the batches have different sizes".into()));
        }
        let number = |which| description.number(which, 0) as u32;
        let compute = number(description::COMPUTE);
        let plain = sums_in_f32(compute)
            && number(description::SCALE) == Element::F32 as u32
            && number(description::POINTER_MODE) == 0
            && number(description::TRANSPOSE_C) == 0
            && a.element == b.element
            && c.element == d.element;
        let epilogue = description.number(description::EPILOGUE, description::EPILOGUE_DEFAULT) as u32 as u64;
        let bias = match epilogue {
            description::EPILOGUE_DEFAULT => None,
            description::EPILOGUE_BIAS => {
                let element = description.number(description::BIAS_TYPE, d.element as u64) as u32;
                Element::from_number(element).map(|element| (description.number(description::BIAS, 0), element))
            }
            _ => return Err(self.wrong(Status::NotSupported, format!("epilogue {epilogue} is not modelled"))),
        };
        if !plain {
            let what = format!("operands {:?}, {:?}, {:?}, compute type {compute}", a.element, b.element, d.element);
            return Err(self.wrong(Status::NotSupported, what));
        }
        let [alpha, beta] = arguments.factors.map(Option::unwrap_or_default);
        let transpose = [number(description::TRANSPOSE_A) != 0, number(description::TRANSPOSE_B) != 0];
        Ok(Product { transpose, alpha, beta, a, b, c, d, batch, bias, workspace: None })
    }

    fn search(&mut self, arguments: &Arguments, preference: u64) -> Result<Found, Status> {
        self.described(arguments)?;
        let preference = self.descriptor(preference)?;
        let alignment = std::array::from_fn(|index| {
            preference.number(preference::ALIGNMENT + index as u32, preference::ALIGNMENT_DEFAULT) as u32 as u64
        });
        // An algorithm may ask for all that it is allowed.
        let workspace = preference.number(preference::WORKSPACE, 0);
        let algorithm = Algorithm { mark: MARK, alignment, workspace, unused: [0; 2] };
        Ok(Found { algorithm, workspace: workspace as usize, status: 0, waves: 1.0, reserved: [0; 4] })
    }

    fn matmul(&mut self, arguments: &Arguments, stream: u64) -> Result<(), Status> {
        if arguments.factors.contains(&None) {
            return Err(self.wrong(Status::InvalidValue, "alpha or beta is null".into()));
        }
        let mut product = self.described(arguments)?;
        let (workspace, len) = arguments.workspace;
        if let Some(algorithm) = arguments.algorithm {
            if algorithm.mark != MARK {
                return Err(self.wrong(Status::InvalidValue, "an algorithm that no search has found".into()));
            }
            for ((name, address), alignment) in
                ["A", "B", "C", "D"].iter().zip(arguments.addresses).zip(algorithm.alignment)
            {
                if alignment > 0 && address % alignment != 0 {
                    let what = format!(
                        "{name} at {address:#x} is not aligned to {alignment} bytes, which the algorithm was searched for"
                    );
                    return Err(self.wrong(Status::InvalidValue, what));
                }
            }
            if (len as u64) < algorithm.workspace {
                let what = format!("a workspace of {len} bytes, the algorithm needs {}", algorithm.workspace);
                return Err(self.wrong(Status::InvalidValue, what));
            }
        }
        if len > 0 {
            if let Err(fault) = self.memory.range(workspace, len) {
                return Err(self.wrong(Status::InvalidValue, format!("workspace: {fault}")));
            }
            product.workspace = Some((workspace, len));
        }
        self.submit_product(stream, product)
    }
}

entry_points! {
    fn cublasLtCreate(to: Out<u64>) |state| {
        let handle = state.handle();
        state.blas.cublaslt.push(handle);
        Ok(to.set(handle)?)
    }
    fn cublasLtDestroy(handle: u64) |state| {
        state.lt(handle)?;
        state.blas.cublaslt.retain(|other| *other != handle);
        Ok(())
    }
    fn cublasLtMatrixLayoutCreate(to: Out<u64>, element: u32, rows: u64, columns: u64, leading: i64) |state| {
        let values = [
            (layout::TYPE, element as u64),
            (layout::ROWS, rows),
            (layout::COLUMNS, columns),
            (layout::LEADING, leading as u64),
        ];
        Ok(to.set(state.create_descriptor(&values))?)
    }
    fn cublasLtMatrixLayoutDestroy(handle: u64) |state| { state.destroy_descriptor(handle) }
    fn cublasLtMatrixLayoutSetAttribute(handle: u64, which: u32, value: In<u8>, len: usize) |state| {
        state.set_attribute(handle, which, value.slice(len))
    }
    fn cublasLtMatmulDescCreate(to: Out<u64>, compute: u32, scale: u32) |state| {
        let values = [(description::COMPUTE, compute as u64), (description::SCALE, scale as u64)];
        Ok(to.set(state.create_descriptor(&values))?)
    }
    fn cublasLtMatmulDescDestroy(handle: u64) |state| { state.destroy_descriptor(handle) }
    fn cublasLtMatmulDescSetAttribute(handle: u64, which: u32, value: In<u8>, len: usize) |state| {
        state.set_attribute(handle, which, value.slice(len))
    }
    fn cublasLtMatmulPreferenceCreate(to: Out<u64>) |state| { Ok(to.set(state.create_descriptor(&[]))?) }
    fn cublasLtMatmulPreferenceDestroy(handle: u64) |state| { state.destroy_descriptor(handle) }
    fn cublasLtMatmulPreferenceSetAttribute(handle: u64, which: u32, value: In<u8>, len: usize) |state| {
        state.set_attribute(handle, which, value.slice(len))
    }
    fn cublasLtMatmulAlgoGetHeuristic(
        handle: u64, description: u64, layout_a: u64, layout_b: u64, layout_c: u64, layout_d: u64, preference: u64,
        wanted: i32, results: Out<Found>, found: Out<i32>,
    ) |state| {
        state.lt(handle)?;
        let arguments = Arguments {
            description,
            factors: [None; 2],
            addresses: [0; 4],
            layouts: [layout_a, layout_b, layout_c, layout_d],
            algorithm: None,
            workspace: (0, 0),
        };
        if wanted < 1 {
            return Err(Status::InvalidValue);
        }
        results.set(state.search(&arguments, preference)?)?;
        Ok(found.set(1)?)
    }
    fn cublasLtMatmul(
        handle: u64, description: u64, alpha: In<f32>, a: u64, layout_a: u64, b: u64, layout_b: u64, beta: In<f32>,
        c: u64, layout_c: u64, d: u64, layout_d: u64, algorithm: In<Algorithm>, workspace: u64, workspace_len: usize,
        stream: u64,
    ) |state| {
        state.lt(handle)?;
        let arguments = Arguments {
            description,
            factors: [alpha.get(), beta.get()],
            addresses: [a, b, c, d],
            layouts: [layout_a, layout_b, layout_c, layout_d],
            algorithm: algorithm.get(),
            workspace: (workspace, workspace_len),
        };
        state.matmul(&arguments, stream)
    }
}
