//! Weights as products read them: Ŵ in bf16, made from the stored form region by region; and the gradients of s and Z.

use half::bf16;

use super::gpu::{Gpu, Grid as Blocks, MAX_BLOCKS_Y};
use super::launch::{Argument, kernels};
use super::memory::{Memory, Mut, Ref};
use super::state::Cuda;
use crate::compute::backend::{Codes, LowRank, Weight};
use crate::format::tensor::Dtype;
use crate::quant::{Phi, Scheme, pack};

kernels! {
    /// `weight.cu`
    Kernels in "weight";
    fn round_weight_i8(w: Real, grid: Grid, region: Region, to: Mut<i8>);
    fn round_weight_i16(w: Real, grid: Grid, region: Region, to: Mut<i16>);
    fn weight_of_real(w: Real, grid: Grid, region: Region, to: Mut<bf16>);
    fn weight_of_integers(integers: Ref<i8>, grid: Grid, region: Region, to: Mut<bf16>, len: i64);
    fn weight_of_codes(codes: Ref<u32>, bits: i32, words: i32, grid: Grid, region: Region, to: Mut<bf16>, len: i64);
    fn integers_of_codes(codes: Ref<u32>, bits: i32, words: i32, grid: Grid, region: Region, to: Mut<i8>, len: i64);
    fn weight_of_floats(w: Ref<u8>, stored: i32, region: Region, to: Mut<bf16>, len: i64);
    fn weight_gradient_i8(dw: Ref<f32>, integers: Ref<i8>, grid: Grid, scales: i64, ds: Mut<f32>, dz: Mut<bf16>);
    fn weight_gradient_i16(dw: Ref<f32>, integers: Ref<i16>, grid: Grid, scales: i64, ds: Mut<f32>, dz: Mut<bf16>);
}

/// Threads, and rows and columns of a block of `for_each_real` in weight.cu.
const THREADS: usize = 128;
const COLUMNS: usize = 4 * THREADS;
const ROWS: usize = 8;
const TALL: usize = 4;

/// The largest rank of which a block's rows of A fit into the shared memory that every GPU gives a block, 48 KiB.
pub const MAX_RANK: usize = (48 << 10) / (ROWS * size_of::<f32>());

/// The grid of a weight, as the kernels read it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Grid {
    scale: u64,
    zero: u64,
    group: i32,
    groups: i32,
    qmin: f32,
    qmax: f32,
    masters: i32,
    unused: i32,
}

/// What Z is made of, as the kernels read it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Real {
    phi: u64,
    a: u64,
    b: u64,
    row_bytes: i64,
    kind: i32,
    unit: f32,
    rank: i32,
    factor: f32,
}

/// A region of a weight, as the kernels read it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Region {
    pub row: i32,
    pub rows: i32,
    pub column: i32,
    pub columns: i32,
    /// Of the whole weight.
    k: i32,
}

// SAFETY: as in weight.cu: addresses first, then numbers of four bytes, no gaps.
unsafe impl Argument for Grid {
    const SIZE: usize = size_of::<Grid>();
}
// SAFETY: as above.
unsafe impl Argument for Real {
    const SIZE: usize = size_of::<Real>();
}
// SAFETY: as above.
unsafe impl Argument for Region {
    const SIZE: usize = size_of::<Region>();
}

impl Region {
    pub fn new(rows: std::ops::Range<usize>, columns: std::ops::Range<usize>, k: usize) -> Region {
        let int = |x: usize| x as i32;
        Region {
            row: int(rows.start),
            rows: int(rows.len()),
            column: int(columns.start),
            columns: int(columns.len()),
            k: int(k),
        }
    }

    pub fn len(&self) -> usize {
        self.rows as usize * self.columns as usize
    }
}

impl Grid {
    /// With masters, which the forward pass rounds.
    pub fn of_masters(scheme: Scheme, k: usize, scale: &Memory<f32>, zero: Option<&Memory<f32>>) -> Grid {
        Grid {
            scale: scale.all().address(),
            zero: zero.map_or(0, |zero| zero.all().address()),
            group: scheme.group_size(k) as i32,
            groups: scheme.groups(k) as i32,
            qmin: scheme.qmin(),
            qmax: scheme.qmax(),
            masters: 1,
            unused: 0,
        }
    }

    pub fn of_codes(w: &Codes<Cuda>) -> Grid {
        Grid { masters: w.master.into(), ..Grid::of_masters(w.scheme, w.k, w.scale, w.zero) }
    }

    /// That of the rows from `row` on.
    pub fn skip_rows(mut self, row: usize) -> Grid {
        let bytes = (row * self.groups as usize * size_of::<f32>()) as u64;
        self.scale += bytes;
        if self.zero != 0 {
            self.zero += bytes;
        }
        self
    }

    pub fn groups(&self) -> usize {
        self.groups as usize
    }
}

/// How φ is stored: `Phi` in grid.cuh, and what one in its whole numbers stands for.
fn phi_kind(stored: Phi, scheme: Scheme) -> (i32, f32) {
    match stored {
        Phi::Q => (0, 1.0 / (1u32 << (8 - scheme.bits)) as f32),
        Phi::Int if scheme.bits > 4 => (0, 1.0),
        Phi::Int => (1, 1.0),
        Phi::Bf16 => (2, 1.0),
        Phi::F32 => (3, 1.0),
    }
}

/// `Stored` in number.cuh.
pub fn stored_kind(dtype: Dtype) -> i32 {
    match dtype {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::BF16 => 2,
        other => unreachable!("{other:?} is not a floating-point type of this project"),
    }
}

fn real(w: &LowRank<Cuda>) -> Real {
    let (kind, unit) = phi_kind(w.stored, w.scheme);
    Real {
        phi: w.phi.on_device().all().address(),
        a: w.a.all().address(),
        b: w.b.all().address(),
        row_bytes: w.stored.row_bytes(w.scheme, w.k) as i64,
        kind,
        unit,
        rank: w.rank as i32,
        factor: w.factor,
    }
}

/// Can round(Z), a step beyond the grid included, be kept in a byte?
pub fn fits_a_byte(scheme: Scheme) -> bool {
    scheme.bits < 8
}

fn blocks_of_real(region: &Region, rank: usize) -> Blocks {
    let rows = (region.rows as usize).div_ceil(ROWS * TALL);
    assert!(rows <= MAX_BLOCKS_Y, "a weight of {} rows", region.rows);
    let blocks = ((region.columns as usize).div_ceil(COLUMNS), rows);
    Blocks { blocks, threads: THREADS as u32, shared: rank * ROWS * size_of::<f32>() }
}

/// round(Z) of a whole low-rank weight in bytes, if it fits into them, or W_Z of one with fixed integers.
pub fn round_weight(gpu: &Gpu, kernels: &Kernels, w: &Weight<Cuda>, to: &mut Memory<i8>) {
    let (n, k) = w.shape();
    let (region, to) = (Region::new(0..n, 0..k, k), to.view_mut(0..n * k));
    match w {
        Weight::LowRank(w) if fits_a_byte(w.scheme) => {
            let grid = Grid::of_masters(w.scheme, w.k, w.scale, w.zero);
            kernels.round_weight_i8(gpu, blocks_of_real(&region, w.rank), real(w), grid, region, to);
        }
        Weight::Codes(w) => unpack_region(gpu, kernels, w, region, to),
        _ => {}
    }
}

/// W_Z of a region.
pub fn unpack_region(gpu: &Gpu, kernels: &Kernels, w: &Codes<Cuda>, region: Region, to: Mut<i8>) {
    let (codes, bits, words) = packed(w);
    let (blocks, len) = (Blocks::elements(region.len()), region.len() as i64);
    kernels.integers_of_codes(gpu, blocks, codes, bits, words, Grid::of_codes(w), region, to, len);
}

/// The packed codes, bits of one, words of a row.
fn packed<'a>(w: &Codes<'a, Cuda>) -> (Ref<'a, u32>, i32, i32) {
    (w.codes.on_device().as_elements(), w.scheme.bits as i32, pack::words(w.k, w.scheme.bits) as i32)
}

/// round(Z) of a region in 16 bits.
pub fn round_region(gpu: &Gpu, kernels: &Kernels, w: &LowRank<Cuda>, region: Region, to: Mut<i16>) {
    let grid = Grid::of_masters(w.scheme, w.k, w.scale, w.zero);
    kernels.round_weight_i16(gpu, blocks_of_real(&region, w.rank), real(w), grid, region, to);
}

/// A whole weight that lies there in bf16 already.
pub fn as_it_lies<'a>(w: &Weight<'a, Cuda>) -> Option<Ref<'a, bf16>> {
    match w {
        Weight::Float { w, .. } if w.dtype() == Dtype::BF16 => Some(w.on_device().as_elements()),
        _ => None,
    }
}

/// Ŵ of a region, densely.
pub fn make(gpu: &Gpu, kernels: &Kernels, w: &Weight<Cuda>, region: Region, to: Mut<bf16>) {
    let (len, blocks) = (region.len(), Blocks::elements(region.len()));
    match w {
        Weight::Float { w, .. } => {
            kernels.weight_of_floats(gpu, blocks, w.on_device().all(), stored_kind(w.dtype()), region, to, len as i64);
        }
        Weight::Codes(w) => {
            let grid = Grid::of_codes(w);
            match w.integers {
                Some(i) => kernels.weight_of_integers(gpu, blocks, i.view(0..w.n * w.k), grid, region, to, len as i64),
                None => {
                    let (codes, bits, words) = packed(w);
                    kernels.weight_of_codes(gpu, blocks, codes, bits, words, grid, region, to, len as i64);
                }
            }
        }
        Weight::LowRank(w) => {
            let grid = Grid::of_masters(w.scheme, w.k, w.scale, w.zero);
            match w.integers.filter(|_| fits_a_byte(w.scheme)) {
                Some(i) => kernels.weight_of_integers(gpu, blocks, i.view(0..w.n * w.k), grid, region, to, len as i64),
                None => kernels.weight_of_real(gpu, blocks_of_real(&region, w.rank), real(w), grid, region, to),
            }
        }
    }
}

/// The integers of the rows that a gradient is of.
pub enum Rounded<'a> {
    Bytes(Ref<'a, i8>),
    Wide(Ref<'a, i16>),
}

/// ds += and dZ = of whole rows, `scales` of them in all.
#[allow(clippy::too_many_arguments)]
pub fn gradient(
    gpu: &Gpu,
    kernels: &Kernels,
    dw: Ref<f32>,
    rounded: Rounded,
    grid: Grid,
    scales: usize,
    ds: Mut<f32>,
    dz: Mut<bf16>,
) {
    const THREADS: usize = 256;
    let blocks = Blocks::blocks((scales * 32).div_ceil(THREADS), THREADS as u32);
    match rounded {
        Rounded::Bytes(i) => kernels.weight_gradient_i8(gpu, blocks, dw, i, grid, scales as i64, ds, dz),
        Rounded::Wide(i) => kernels.weight_gradient_i16(gpu, blocks, dw, i, grid, scales as i64, ds, dz),
    }
}
