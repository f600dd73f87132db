//! The linears: Ŵ is made in the workspace, by panels where it is larger, and multiplied; in the backward pass dŴ takes
//! its place, and becomes dA, dB and ds.

use std::ops::Range;

use half::bf16;

use super::memory::{Carve, Mut, Ref};
use super::product::{Product, To, Transposed};
use super::state::Cuda;
use super::weight::{self, Grid, Region, Rounded};
use crate::compute::backend::{Branch, LowRank, LowRankGrads, Output, Weight};

/// Bytes of the workspace, if the weights are as large. Those of tests are small: there it holds no more than a panel.
const WORKSPACE: usize = if cfg!(test) { 4 << 10 } else { 128 << 20 };
/// Rows or columns of a panel are multiples of this.
const PANEL: usize = 64;
/// Bytes of a weight in the workspace: Ŵ; dŴ in f32, dZ in bf16 and, where bytes do not hold them, its integers.
const MADE: usize = size_of::<bf16>();
const GRADIENT: usize = size_of::<f32>() + size_of::<bf16>() + size_of::<i16>();

/// Where a product's result goes, [rows, width].
pub enum Target<'a> {
    Bf16(Mut<'a, bf16>),
    F32(Mut<'a, f32>, bool),
}

impl<'a> Target<'a> {
    /// The output of an op, of `len` elements.
    pub fn new(output: Output<'a, Cuda>, len: usize) -> Target<'a> {
        match output {
            Output::Activation(to) => Target::Bf16(to.view_mut(0..len)),
            Output::Buffer { to, accumulate } => Target::F32(to.view_mut(0..len), accumulate),
        }
    }

    /// From column `column` on.
    fn at(&mut self, column: usize) -> To<'_> {
        match self {
            Target::Bf16(to) => To::Bf16(to.offset(column)),
            Target::F32(to, _) => To::F32(to.offset(column)),
        }
    }

    fn accumulates(&self) -> bool {
        matches!(self, Target::F32(_, true))
    }

    fn again(&mut self, accumulate: bool) -> Target<'_> {
        match self {
            Target::Bf16(to) => Target::Bf16(to.again()),
            Target::F32(to, _) => Target::F32(to.again(), accumulate),
        }
    }
}

/// Bytes of the workspace for linears of these shapes, and whether there are gradients.
pub fn workspace_bytes(linears: &[(usize, usize)], training: bool) -> usize {
    let of = |(n, k): &(usize, usize)| {
        let forward = workspace_of(n * k, MADE, PANEL * n.max(k));
        if training { forward.max(workspace_of(n * k, GRADIENT, PANEL * k)) } else { forward }
    };
    linears.iter().map(of).max().unwrap_or(0)
}

/// For `weights`, or for the panels that they are made in, the smallest of which has `least`.
fn workspace_of(weights: usize, each: usize, least: usize) -> usize {
    (weights * each).min(WORKSPACE.max(least * each)) + 3 * Carve::ALIGNED
}

/// `total` rows or columns in panels of `line` weights a row, `each` bytes a weight.
fn panels(total: usize, line: usize, each: usize) -> impl Iterator<Item = Range<usize>> {
    let fit = WORKSPACE / (line * each);
    let step = if fit >= total { total } else { (fit / PANEL * PANEL).max(PANEL) };
    (0..total).step_by(step.max(1)).map(move |from| from..total.min(from + step))
}

impl Cuda {
    /// y (+)= x·Ŵᵀ. x [rows, k], y [rows, n].
    pub fn multiply(&self, x: Ref<bf16>, rows: usize, w: &Weight<Cuda>, mut y: Target) {
        let (n, k) = w.shape();
        let accumulate = y.accumulates();
        let product = |n_here| Product { c_leading: n, accumulate, ..Product::new(Transposed::Y, rows, n_here, k) };
        if let Some(w) = weight::as_it_lies(w) {
            return self.products.run(&self.gpu, product(n), x, w, y.at(0));
        }
        for panel in panels(n, k, MADE) {
            let region = Region::new(panel.clone(), 0..k, k);
            self.workspace.with(&self.gpu, workspace_of(n * k, MADE, PANEL * k), |memory| {
                let mut made = memory.carve().take::<bf16>(region.len());
                weight::make(&self.gpu, &self.weights, w, region, made.again());
                self.products.run(&self.gpu, product(panel.len()), x, made.read(), y.at(panel.start));
            });
        }
    }

    /// dx (+)= dy·Ŵ. dy [rows, n], dx [rows, k].
    pub fn multiply_back(&self, dy: Ref<bf16>, rows: usize, w: &Weight<Cuda>, mut dx: Target) {
        let (n, k) = w.shape();
        let accumulate = dx.accumulates();
        let product =
            |columns| Product { c_leading: k, accumulate, ..Product::new(Transposed::Neither, rows, columns, n) };
        if let Some(w) = weight::as_it_lies(w) {
            return self.products.run(&self.gpu, product(k), dy, w, dx.at(0));
        }
        // Panels of columns: each is summed over all rows of Ŵ at once, in f32.
        for panel in panels(k, n, MADE) {
            let region = Region::new(0..n, panel.clone(), k);
            self.workspace.with(&self.gpu, workspace_of(n * k, MADE, PANEL * n), |memory| {
                let mut made = memory.carve().take::<bf16>(region.len());
                weight::make(&self.gpu, &self.weights, w, region, made.again());
                self.products.run(&self.gpu, product(panel.len()), dy, made.read(), dx.at(panel.start));
            });
        }
    }

    /// dx (+)= of several branches of one input.
    pub fn backward<const N: usize>(&self, x: Ref<bf16>, rows: usize, branches: [Branch<Cuda>; N], mut dx: Target) {
        let accumulates = dx.accumulates();
        for (i, Branch { weight, dy, grads }) in branches.into_iter().enumerate() {
            let dy = dy.view(0..rows * weight.shape().0);
            self.multiply_back(dy, rows, &weight, dx.again(accumulates || i > 0));
            self.weight_gradients(x, rows, &weight, dy, grads);
        }
    }

    /// dA, dB and ds += of a low-rank weight, from dŴ = dyᵀ·x.
    pub fn weight_gradients(
        &self,
        x: Ref<bf16>,
        rows: usize,
        w: &Weight<Cuda>,
        dy: Ref<bf16>,
        grads: Option<LowRankGrads<Cuda>>,
    ) {
        let (Weight::LowRank(w), Some(mut grads)) = (w, grads) else { return };
        let (n, k, r) = (w.n, w.k, w.rank);
        self.factors.with(&self.gpu, factors_len(n, k, r), |memory| {
            // A [n, r] and B [r, k] as operands.
            let mut carve = memory.carve();
            let (mut a, mut b) = (carve.take::<bf16>(n * r), carve.take::<bf16>(r * k));
            self.kernels.round(&self.gpu, w.a.view(0..n * r), a.again(), n * r);
            self.kernels.round(&self.gpu, w.b.view(0..r * k), b.again(), r * k);
            for panel in panels(n, k, GRADIENT) {
                self.panel_gradients(x, rows, w, dy, panel, [a.read(), b.read()], &mut grads);
            }
        });
    }

    #[allow(clippy::too_many_arguments)]
    fn panel_gradients(
        &self,
        x: Ref<bf16>,
        rows: usize,
        w: &LowRank<Cuda>,
        dy: Ref<bf16>,
        panel: Range<usize>,
        [a, b]: [Ref<bf16>; 2],
        grads: &mut LowRankGrads<Cuda>,
    ) {
        let (gpu, n, k, r, here) = (&self.gpu, w.n, w.k, w.rank, panel.len());
        let products = &self.products;
        self.workspace.with(gpu, workspace_of(n * k, GRADIENT, PANEL * k), |memory| {
            let mut carve = memory.carve();
            let (mut dw, mut dz) = (carve.take::<f32>(here * k), carve.take::<bf16>(here * k));
            let product = Product { x_leading: n, ..Product::new(Transposed::X, here, k, rows) };
            products.run(gpu, product, dy.offset(panel.start), x, To::F32(dw.again()));

            let mut wide = carve.take::<i16>(here * k);
            let rounded = match w.integers.filter(|_| weight::fits_a_byte(w.scheme)) {
                Some(integers) => Rounded::Bytes(integers.view(panel.start * k..panel.end * k)),
                None => {
                    weight::round_region(gpu, &self.weights, w, Region::new(panel.clone(), 0..k, k), wide.again());
                    Rounded::Wide(wide.read())
                }
            };
            let grid = Grid::new(w.scheme, k, w.scale, w.zero).skip_rows(panel.start);
            let scales = panel.start * grid.groups()..panel.end * grid.groups();
            let ds = grads.scale.view_mut(scales.clone());
            weight::gradient(gpu, &self.weights, dw.read(), rounded, grid, scales.len(), ds, dz.again());

            let sum = |product: Product| Product { alpha: w.factor, accumulate: true, ..product };
            let da = grads.a.view_mut(panel.start * r..panel.end * r);
            products.run(gpu, sum(Product::new(Transposed::Y, here, r, k)), dz.read(), b, To::F32(da));
            let db = grads.b.view_mut(0..r * k);
            let of_a = a.offset(panel.start * r);
            products.run(gpu, sum(Product::new(Transposed::X, r, k, here)), of_a, dz.read(), To::F32(db));
        });
    }
}

/// Bytes of A and B as operands.
pub fn factors_len(n: usize, k: usize, rank: usize) -> usize {
    rank * (n + k) * size_of::<bf16>() + 2 * Carve::ALIGNED
}
