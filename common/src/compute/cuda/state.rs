//! What the device keeps between ops: kernels, memory that ops share, small tables.

use std::sync::{Arc, Mutex};

use half::bf16;

use super::attention::{Shape, Tile};
use super::gpu::{Gpu, Grid};
use super::kernels::Kernels;
use super::memory::{GRANULE, Memory, Ref, Staging, bytes_of};
use super::optimizer::{self, Part};
use super::product::Products;
use super::scratch::{Scratch, Table};
use super::times::Time;
use super::{adapter, attention, cublaslt, head, linear, open, weight};
use crate::compute::backend::{Extent, Heads, Training};
use crate::error::Result;

pub struct Cuda {
    pub(super) gpu: Arc<Gpu>,
    pub(super) kernels: Kernels,
    pub(super) weights: weight::Kernels,
    pub(super) head: head::Kernels,
    pub(super) products: Products,
    pub(super) attention: attention::Kernels,
    pub(super) optimizer: optimizer::Kernels,
    pub(super) staging: Mutex<Staging>,

    /// Ŵ or dŴ.
    pub(super) workspace: Scratch<u8>,
    /// A and B as operands.
    pub(super) factors: Scratch<u8>,
    /// What adapters compute with.
    pub(super) adapters: Scratch<u8>,
    pub(super) head_scratch: Scratch<u8>,
    /// The second operand of SwiGLU, and the gradient of its result.
    pub(super) inner: Scratch<bf16>,
    /// Rows of an embedding that is on the host.
    pub(super) gathered: Scratch<u8>,
    /// Σ out∘dout of each row and head.
    pub(super) delta: Scratch<f32>,
    pub(super) sums: Scratch<f64>,

    pub(super) tokens: Table<u32>,
    pub(super) targets: Table<u32>,
    pub(super) rows: Table<u32>,
    positions: Table<i32>,
    pub(super) tiles: Table<Tile>,
    pub(super) parts: Table<Part>,
}

/// Cosines and sines [positions, half].
pub struct Rotations {
    pub(super) cosines: Memory<f32>,
    pub(super) sines: Memory<f32>,
    pub(super) half: usize,
}

/// Measured on no GPU yet: what CUDA's context, its modules and cuBLASLt's own code take of the GPU's memory.
pub const CONTEXT: u64 = 512 << 20;

impl Cuda {
    /// What `call` does on the GPU, kernel by kernel.
    pub fn times(&self, call: impl FnOnce()) -> Result<Vec<Time>> {
        self.gpu.times(call)
    }

    /// The first GPU, or what is missing.
    pub fn open() -> Result<Cuda> {
        let gpu = Arc::new(open::gpu()?);
        Ok(Cuda {
            kernels: Kernels::load(&gpu)?,
            weights: weight::Kernels::load(&gpu)?,
            head: head::Kernels::load(&gpu)?,
            products: Products::new(&gpu)?,
            attention: attention::Kernels::load(&gpu)?,
            optimizer: optimizer::Kernels::load(&gpu)?,
            staging: Mutex::new(Staging::new(&gpu)?),
            workspace: Scratch::default(),
            factors: Scratch::default(),
            adapters: Scratch::default(),
            head_scratch: Scratch::default(),
            inner: Scratch::default(),
            gathered: Scratch::default(),
            delta: Scratch::default(),
            sums: Scratch::default(),
            tokens: Table::default(),
            targets: Table::default(),
            rows: Table::default(),
            positions: Table::default(),
            tiles: Table::default(),
            parts: Table::default(),
            gpu,
        })
    }

    /// Lends the tiles of the sequences.
    pub(super) fn with_tiles(&self, h: Heads, segments: &[usize], work: impl FnOnce(Ref<Tile>, usize, Shape)) {
        let (tiles, shape) = (attention::tiles(segments), Shape::new(h.heads, h.kv_heads, h.head_dim, h.window));
        let count = tiles.len();
        self.tiles.with(&self.gpu, tiles, |tiles| work(tiles, count, shape));
    }

    pub(super) fn rotate(
        &self,
        table: &Rotations,
        x: &mut Memory<bf16>,
        heads: usize,
        head_dim: usize,
        positions: Vec<i32>,
        direction: f32,
    ) {
        assert!(head_dim == 2 * table.half, "rope: a table for head_dim {}, used with {head_dim}", 2 * table.half);
        let pairs = positions.len() * heads * table.half;
        let x = x.view_mut(0..2 * pairs);
        self.positions.with(&self.gpu, positions, |at| {
            let (cosines, sines, heads, half) =
                (table.cosines.all(), table.sines.all(), heads as i32, table.half as i32);
            self.kernels.rope.rope(
                &self.gpu,
                Grid::elements(pairs),
                x,
                at,
                cosines,
                sines,
                direction,
                heads,
                half,
                pairs as i64,
            );
        });
    }
}

/// What it holds besides the ledger's buffers.
pub fn scratch(of: &Extent) -> Vec<(&'static str, String, u64)> {
    let (inside, outside, dropout) = match of.training {
        Some(Training { rank, outside: true, dropout, .. }) => (0, rank, dropout),
        Some(Training { rank, .. }) => (rank, 0, false),
        None => (0, 0, false),
    };
    let widest = |of: &dyn Fn(&(usize, usize)) -> usize, all: &[(usize, usize)]| all.iter().map(of).max().unwrap_or(0);
    let workspace = bytes_of::<u8>(linear::workspace_bytes(of.linears, of.training.is_some()));
    let factors = widest(&|(n, k)| linear::factors_len(*n, *k, inside), of.linears);
    let adapters = if outside > 0 {
        widest(&|(n, k)| adapter::operands_len(*n, *k, outside, of.rows, dropout), of.linears)
    } else {
        0
    };
    let inner = of.rows * of.linears.iter().map(|(n, _)| *n).max().unwrap_or(0);
    let answer = of.answer.map_or(0, head::answer_bytes);
    let chunk = head::Chunk { vocab: of.vocab, d: of.d, models: of.heads_at_once, answer };
    let logits = bytes_of::<u8>(chunk.bytes(of.rows));
    let (linears, layers) = (of.linears.len(), of.linears.len().div_ceil(7));
    // A part of a tensor in the optimizer's table, for scales of groups of 8.
    let parts: usize = of
        .linears
        .iter()
        .map(|(n, k)| 3 + optimizer::parts((inside + outside) * (n + k)) + optimizer::parts(n * k / 8))
        .sum();
    let tables = 5 * bytes_of::<u32>(of.rows)
        + bytes_of::<f32>(of.tokens * of.heads.head_dim)
        + bytes_of::<f32>((2 * layers + 1) * of.d)
        + (parts * (size_of::<Part>() + size_of::<f64>())) as u64
        // Everything is a multiple of this: Φ0, zero points; A, B and s with gradients and moments; buffers.
        + GRANULE * (16 * linears + 64) as u64;
    vec![
        ("workspace", "Ŵ of a linear, or dŴ and dZ of a panel".into(), workspace),
        (
            "operands",
            "A and B of a linear in bf16, what an adapter computes with".into(),
            bytes_of::<u8>(factors + adapters),
        ),
        ("inner", "a gradient of SwiGLU".into(), bytes_of::<bf16>(inner)),
        ("logits", format!("of {} rows, and their gradient", chunk.rows(of.rows)), logits),
        ("delta", "Σ out∘dout of rows and heads".into(), bytes_of::<f32>(of.rows * of.heads.heads)),
        ("tables", "norms, angles, rows, parameters, and what allocations are rounded up by".into(), tables),
        ("cublaslt", "its workspace".into(), cublaslt::WORKSPACE as u64),
        ("context", "CUDA's own, an estimate".into(), CONTEXT),
    ]
}
