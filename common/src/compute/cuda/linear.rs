//! The linears: Ŵ is made in the workspace, by panels where it is larger, and multiplied; in the backward pass dŴ takes
//! its place, and becomes dA, dB and ds.

use std::ops::Range;

use half::bf16;

use super::memory::{Carve, Memory, Mut, Ref};
use super::product::{Product, To, Transposed};
use super::state::Cuda;
use super::weight::{self, Grid, Region, Rounded};
use crate::compute::backend::{Branch, Gradients, Output, Weight};

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
    pub fn at(&mut self, column: usize) -> To<'_> {
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
    /// y (+)= x·Ŵᵀ, and the adapter's part. x [rows, k], y [rows, n].
    pub fn multiply(&self, x: Ref<bf16>, rows: usize, w: &Weight<Cuda>, mut y: Target) {
        self.multiply_weight(x, rows, w, &mut y);
        self.adapter_forward(x, rows, w, y);
    }

    fn multiply_weight(&self, x: Ref<bf16>, rows: usize, w: &Weight<Cuda>, y: &mut Target) {
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
        for (i, Branch { weight, dy, mut grads }) in branches.into_iter().enumerate() {
            let dy = dy.view(0..rows * weight.shape().0);
            self.multiply_back(dy, rows, &weight, dx.again(accumulates || i > 0));
            let factors = grads.as_mut().and_then(|grads| grads.factors.as_mut());
            self.adapter_backward(x, rows, &weight, dy, factors, dx.again(true));
            self.weight_gradients(x, rows, &weight, dy, grads);
        }
    }

    /// ds += and, of a low-rank weight, dA and dB += from dŴ = dyᵀ·x.
    pub fn weight_gradients(
        &self,
        x: Ref<bf16>,
        rows: usize,
        w: &Weight<Cuda>,
        dy: Ref<bf16>,
        grads: Option<Gradients<Cuda>>,
    ) {
        let Some(mut grads) = grads else { return };
        let (n, k) = w.shape();
        match w {
            Weight::Float { .. } => {}
            Weight::Codes(_) => {
                assert!(grads.latent.is_none(), "weights are learned one by one on the CPU alone");
                if let Some(scale) = grads.scale {
                    for panel in panels(n, k, GRADIENT) {
                        self.panel_gradients(x, rows, w, dy, panel, scale, |_, _| {});
                    }
                }
            }
            Weight::LowRank(of) => self.factors.with(&self.gpu, factors_len(n, k, of.rank), |memory| {
                // A [n, r] and B [r, k] as operands.
                let (r, mut carve) = (of.rank, memory.carve());
                let (mut a, mut b) = (carve.take::<bf16>(n * r), carve.take::<bf16>(r * k));
                self.kernels.round(&self.gpu, of.a.view(0..n * r), a.again(), n * r);
                self.kernels.round(&self.gpu, of.b.view(0..r * k), b.again(), r * k);
                let (Some(scale), Some([da, db])) = (&mut grads.scale, &mut grads.factors) else { return };
                for panel in panels(n, k, GRADIENT) {
                    self.panel_gradients(x, rows, w, dy, panel, scale, |rows, dz| {
                        let (products, gpu, here) = (&self.products, &self.gpu, rows.len());
                        let sum = |product: Product| Product { alpha: of.factor, accumulate: true, ..product };
                        let da = da.view_mut(rows.start * r..rows.end * r);
                        products.run(gpu, sum(Product::new(Transposed::Y, here, r, k)), dz, b.read(), To::F32(da));
                        let of_a = a.read().offset(rows.start * r);
                        let db = db.view_mut(0..r * k);
                        products.run(gpu, sum(Product::new(Transposed::X, r, k, here)), of_a, dz, To::F32(db));
                    });
                }
            }),
        }
    }

    /// ds += of some rows; `then` is given the rows and their dZ.
    #[allow(clippy::too_many_arguments)]
    fn panel_gradients(
        &self,
        x: Ref<bf16>,
        rows: usize,
        w: &Weight<Cuda>,
        dy: Ref<bf16>,
        panel: Range<usize>,
        ds: &mut Memory<f32>,
        then: impl FnOnce(Range<usize>, Ref<bf16>),
    ) {
        let (gpu, (n, k), here) = (&self.gpu, w.shape(), panel.len());
        self.workspace.with(gpu, workspace_of(n * k, GRADIENT, PANEL * k), |memory| {
            let mut carve = memory.carve();
            let (mut dw, mut dz) = (carve.take::<f32>(here * k), carve.take::<bf16>(here * k));
            let product = Product { x_leading: n, ..Product::new(Transposed::X, here, k, rows) };
            self.products.run(gpu, product, dy.offset(panel.start), x, To::F32(dw.again()));

            let region = Region::new(panel.clone(), 0..k, k);
            let kept = panel.start * k..panel.end * k;
            let (mut narrow, mut wide);
            let (rounded, grid) = match w {
                Weight::Float { .. } => return,
                Weight::Codes(w) => {
                    let rounded = match w.integers {
                        Some(integers) => Rounded::Bytes(integers.view(kept)),
                        None => {
                            narrow = carve.take::<i8>(here * k);
                            weight::unpack_region(gpu, &self.weights, w, region, narrow.again());
                            Rounded::Bytes(narrow.read())
                        }
                    };
                    (rounded, Grid::of_codes(w))
                }
                Weight::LowRank(w) => {
                    let rounded = match w.integers.filter(|_| weight::fits_a_byte(w.scheme)) {
                        Some(integers) => Rounded::Bytes(integers.view(kept)),
                        None => {
                            wide = carve.take::<i16>(here * k);
                            weight::round_region(gpu, &self.weights, w, region, wide.again());
                            Rounded::Wide(wide.read())
                        }
                    };
                    (rounded, Grid::of_masters(w.scheme, k, w.scale, w.zero))
                }
            };
            let grid = grid.skip_rows(panel.start);
            let scales = panel.start * grid.groups()..panel.end * grid.groups();
            let ds = ds.view_mut(scales.clone());
            weight::gradient(gpu, &self.weights, dw.read(), rounded, grid, scales.len(), ds, dz.again());
            then(panel, dz.read());
        });
    }
}

/// Bytes of A and B as operands.
pub fn factors_len(n: usize, k: usize, rank: usize) -> usize {
    rank * (n + k) * size_of::<bf16>() + 2 * Carve::ALIGNED
}
