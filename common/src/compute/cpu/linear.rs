//! The linear: products with Ŵ made on the fly, and the gradients of A, B and s.

use std::marker::PhantomData;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Cpu;
use super::aligned::Aligned;
use super::element::Element;
use super::head::row_stride;
use super::made::MadeWeight;
use super::product::{
    Kernel, Left, Lines, Made, Right, Rows, Scratch, Shared, SideBySide, Split, ToActivation, ToActivations, ToF32,
    Work, product, thread_bytes, with_kernel,
};
use super::swiglu::{ToSwiGlu, ToSwiGluGradient};
use super::weight_gradient::{GradientScratch, WeightGradient, weight_gradients};
use crate::compute::backend::{Branch, Extent, LowRankGrads, Output, Weight};

/// Memory that every linear and the head use again.
#[derive(Default)]
pub struct Workspace {
    packed: Mutex<Packed>,
    logits: Mutex<[Scratch; 2]>,
}

#[derive(Default)]
struct Packed {
    left: Scratch,
    gradient: GradientScratch,
}

/// y [rows, n] = x [rows, k]·Ŵᵀ (+ y).
pub fn forward<E: Element>(ws: &Workspace, x: &[E], rows: usize, w: &Weight<Cpu<E>>, y: Output<Cpu<E>>) {
    let (_, k) = w.shape();
    let made = MadeWeight::new(w);
    let by = Made::Transposed(&made);
    ws.multiply(&Lines::rows(&x[..rows * k], rows, k), &by, y);
}

/// y [rows, n] = x [rows, k]·Ŵᵀ of several weights.
pub fn forward_all<E: Element>(ws: &Workspace, x: &[E], rows: usize, w: &[Weight<Cpu<E>>], y: Vec<&mut [E]>) {
    let made: Vec<MadeWeight<E>> = w.iter().map(MadeWeight::new).collect();
    let by = SideBySide::one_after_another(&made);
    let to = y.into_iter().zip(&made).map(|(y, w)| Shared::new(y, rows, w.n(), w.n())).collect();
    ws.multiply_to(
        &Lines::rows(&x[..rows * by.k()], rows, by.k()),
        &by,
        Destination::Activations(ToActivations { to, places: by.places() }),
    );
}

/// dx [rows, k] = Σ dy [rows, n]·Ŵ (+ dx), and the gradients of low-rank weights.
pub fn backward<E: Element>(ws: &Workspace, x: &[E], rows: usize, branches: Vec<Branch<Cpu<E>>>, dx: Output<Cpu<E>>) {
    let (weights, ends): (Vec<_>, Vec<_>) = branches.into_iter().map(|b| (b.weight, (b.dy, b.grads))).unzip();
    let made: Vec<MadeWeight<E>> = weights.iter().map(MadeWeight::new).collect();
    let dy = |of: usize| Lines::rows(&ends[of].0[..rows * made[of].n()], rows, made[of].n());
    match dx {
        Output::Activation(dx) => {
            assert!(made.len() == 1, "several branches need a sum in f32");
            ws.multiply(&dy(0), &Made::AsIs(&made[0]), Output::Activation(dx));
        }
        Output::Buffer { to, accumulate } => {
            for (of, w) in made.iter().enumerate() {
                let accumulate = accumulate || of > 0;
                ws.multiply(&dy(of), &Made::AsIs(w), Output::Buffer { to: &mut *to, accumulate });
            }
        }
    }
    gradients(ws, x, rows, made.iter().zip(ends));
}

/// out [rows, n] = silu(x·Wgᵀ)∘(x·Wuᵀ).
pub fn swiglu_forward<E: Element>(
    ws: &Workspace,
    x: &[E],
    rows: usize,
    gate_up: &[Weight<Cpu<E>>; 2],
    kept: Option<[&mut [E]; 2]>,
    out: &mut [E],
) {
    let made = [MadeWeight::new(&gate_up[0]), MadeWeight::new(&gate_up[1])];
    let (by, n) = (SideBySide::by_turns(&made), made[0].n());
    let kept = kept.map(|kept| kept.map(|y| Shared::new(y, rows, n, n)));
    let to = ToSwiGlu { kept, out: Shared::new(out, rows, n, n) };
    ws.multiply_to(&Lines::rows(&x[..rows * by.k()], rows, by.k()), &by, Destination::SwiGlu(to));
}

/// Backward through `down` and SwiGLU, and the gradients of `down`, whose input was `out`.
pub fn swiglu_backward<E: Element>(
    ws: &Workspace,
    out: &[E],
    rows: usize,
    down: Branch<Cpu<E>>,
    gate: &mut [E],
    up: &mut [E],
) {
    let made = MadeWeight::new(&down.weight);
    let (n, k) = (made.n(), made.k());
    let to = ToSwiGluGradient { gate: Shared::new(gate, rows, k, k), up: Shared::new(up, rows, k, k) };
    let dy = Lines::rows(&down.dy[..rows * n], rows, n);
    ws.multiply_to(&dy, &Made::AsIs(&made), Destination::SwiGluGradient(to));
    gradients(ws, out, rows, [(&made, (down.dy, down.grads))]);
}

/// The gradients of the low-rank ones among weights of one input x: each with dy, and where they go.
fn gradients<'a, E: Element>(
    ws: &Workspace,
    x: &[E],
    rows: usize,
    of: impl IntoIterator<Item = (&'a MadeWeight<'a, E>, (&'a Aligned<E>, Option<LowRankGrads<'a, Cpu<E>>>))>,
) {
    let of: Vec<WeightGradient<E>> = of
        .into_iter()
        .filter_map(|(made, (dy, grads))| match (made, grads) {
            (MadeWeight::LowRank(w), Some(g)) => {
                Some(WeightGradient { w, dy: &dy[..rows * w.n], scale: g.scale, a: g.a, b: g.b })
            }
            _ => None,
        })
        .collect();
    if let Some(first) = of.first() {
        let x = &x[..rows * first.w.grid.k];
        with_kernel::<E, _>(GradientsOf { ws, x, rows, of });
    }
}

impl Workspace {
    fn packed(&self) -> MutexGuard<'_, Packed> {
        self.packed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logits of a chunk, of one model and of a reference.
    pub fn logits(&self) -> MutexGuard<'_, [Scratch; 2]> {
        self.logits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// output = or += a·b.
    fn multiply<E: Element, B: Right>(&self, a: &Lines<E>, b: &B, output: Output<Cpu<E>>) {
        let (m, n) = (a.lines, b.n());
        let to = match output {
            Output::Activation(y) => Destination::Activation(ToActivation::new(y, m, n)),
            Output::Buffer { to, accumulate } => Destination::F32(ToF32::new(to, m, n, n, accumulate)),
        };
        self.multiply_to(a, b, to);
    }

    fn multiply_to<E: Element, B: Right>(&self, a: &Lines<E>, b: &B, to: Destination<E>) {
        with_kernel::<E, _>(Product { ws: self, a, b, to });
    }

    /// a·b in f32.
    pub fn multiply_f32<E: Element, B: Right>(&self, a: &Lines<E>, b: &B, to: ToF32) {
        self.multiply_to(a, b, Destination::<E>::F32(to));
    }
}

enum Destination<'a, E> {
    Activation(ToActivation<'a, E>),
    F32(ToF32<'a>),
    Activations(ToActivations<'a, E>),
    SwiGlu(ToSwiGlu<'a, E>),
    SwiGluGradient(ToSwiGluGradient<'a, E>),
}

struct Product<'a, E, B> {
    ws: &'a Workspace,
    a: &'a Lines<'a, E>,
    b: &'a B,
    to: Destination<'a, E>,
}

impl<E: Element, B: Right> Work for Product<'_, E, B> {
    type Output = ();

    fn run<K: Kernel>(self, kernel: K) {
        let mut packed = self.ws.packed();
        let left = Left::new(kernel, self.a, &mut packed.left);
        match &self.to {
            Destination::Activation(to) => product(kernel, &left, self.b, Split::Columns, to),
            Destination::F32(to) => product(kernel, &left, self.b, Split::Columns, to),
            Destination::Activations(to) => product(kernel, &left, self.b, Split::Columns, to),
            Destination::SwiGlu(to) => product(kernel, &left, self.b, Split::Pairs, to),
            Destination::SwiGluGradient(to) => product(kernel, &left, self.b, Split::Columns, to),
        }
    }
}

/// Bytes of packed operands, and of all threads, with a head in chunks of `chunk` rows.
pub fn scratch<E: Element>(of: &Extent, chunk: usize) -> (usize, usize) {
    struct Bytes<'a, E>(&'a Extent<'a>, usize, PhantomData<E>);
    impl<E: Element> Work for Bytes<'_, E> {
        type Output = (usize, usize);
        fn run<K: Kernel>(self, _: K) -> (usize, usize) {
            let Bytes(of, chunk, _) = self;
            let left = |m: usize, k: usize, stride: usize| Left::<K>::bytes::<E>(m, k, stride);
            let widest = of.linears.iter().map(|(n, k)| left(of.rows, *k, *k).max(left(of.rows, *n, *n)));
            let stride = row_stride(of.vocab) * size_of::<f32>() / size_of::<E>();
            let dlogits = if of.rank > 0 {
                left(chunk, of.vocab, stride).max(left(of.rows % chunk, of.vocab, stride))
            } else {
                0
            };
            let widest = widest.max().unwrap_or(0).max(dlogits).max(left(chunk, of.d, of.d));
            let gradient = |(n, k): &(usize, usize)| GradientScratch::bytes::<K>(*n, *k, of.rank, of.rows);
            let gradients = if of.rank > 0 { of.linears.iter().map(gradient).max().unwrap_or(0) } else { 0 };
            (widest + gradients, rayon::current_num_threads() * thread_bytes::<K>(of.rows))
        }
    }
    with_kernel::<E, _>(Bytes(of, chunk, PhantomData::<E>))
}

struct GradientsOf<'a, E> {
    ws: &'a Workspace,
    x: &'a [E],
    rows: usize,
    of: Vec<WeightGradient<'a, E>>,
}

impl<E: Element> Work for GradientsOf<'_, E> {
    type Output = ();

    fn run<K: Kernel>(self, kernel: K) {
        let mut packed = self.ws.packed();
        weight_gradients(kernel, &mut packed.gradient, self.x, self.rows, self.of);
    }
}
