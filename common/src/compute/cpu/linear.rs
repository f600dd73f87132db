//! The linear: products with Ŵ made on the fly, and the gradients of A, B and s.

use std::marker::PhantomData;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Cpu;
use super::adapter::{AdapterScratch, Back, Beside, Plus};
use super::element::Element;
use super::head::row_stride;
use super::made::MadeWeight;
use super::product::{
    Kernel, Left, Lines, Made, Place, Right, Rows, Scratch, Shared, SideBySide, Split, ToActivation, ToActivations,
    ToF32, Work, product, thread_bytes, with_kernel,
};
use super::swiglu::{ToSwiGlu, ToSwiGluGradient};
use super::weight_gradient::{GradientScratch, WeightGradient, weight_gradients};
use crate::compute::backend::{Branch, Extent, Gradients, Output, Training, Weight};

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
    adapters: AdapterScratch,
}

/// y [rows, n] = x [rows, k]·Ŵᵀ (+ y).
pub fn forward<E: Element>(ws: &Workspace, x: &[E], rows: usize, w: &Weight<Cpu<E>>, y: Output<Cpu<E>>) {
    let (_, k) = w.shape();
    let (made, x) = (MadeWeight::new(w), &x[..rows * k]);
    ws.multiply(&Lines::rows(x, rows, k), &Made::Transposed(&made), y, beside(w, x, rows, None));
}

/// The adapter of a weight in a pass, if it has one.
fn beside<'a, E: Element>(
    w: &'a Weight<'a, Cpu<E>>,
    x: &'a [E],
    rows: usize,
    back: Option<Back<'a, E>>,
) -> Option<Beside<'a, E>> {
    let adapter = w.adapter()?;
    let (a, b, rank) = (&adapter.a[..], &adapter.b[..], adapter.rank);
    Some(Beside { a, b, rank, factor: adapter.factor, dropout: adapter.dropout, x, rows, back })
}

/// y [rows, n] = x [rows, k]·Ŵᵀ of several weights.
pub fn forward_all<E: Element>(ws: &Workspace, x: &[E], rows: usize, w: &[Weight<Cpu<E>>], y: Vec<&mut [E]>) {
    let made: Vec<MadeWeight<E>> = w.iter().map(MadeWeight::new).collect();
    let by = SideBySide::one_after_another(&made);
    let to = y.into_iter().zip(&made).map(|(y, w)| Shared::new(y, rows, w.n(), w.n())).collect();
    let (x, k) = (&x[..rows * by.k()], by.k());
    let adapters = w.iter().map(|w| beside(w, x, rows, None)).collect();
    let to = Destination::Activations(ToActivations { to, places: by.places() });
    ws.multiply_to(&Lines::rows(x, rows, k), &by, to, adapters, Some(by.places()));
}

/// dx [rows, k] = Σ dy [rows, n]·Ŵ (+ dx), and the gradients of what is trained.
pub fn backward<E: Element>(
    ws: &Workspace,
    x: &[E],
    rows: usize,
    branches: Vec<Branch<Cpu<E>>>,
    mut dx: Output<Cpu<E>>,
) {
    let (weights, ends): (Vec<_>, Vec<_>) = branches.into_iter().map(|b| (b.weight, (b.dy, b.grads))).unzip();
    assert!(weights.len() == 1 || matches!(dx, Output::Buffer { .. }), "several branches need a sum in f32");
    let made: Vec<MadeWeight<E>> = weights.iter().map(MadeWeight::new).collect();
    let mut scales = Vec::new();
    for (of, ((w, made), (dy, grads))) in weights.iter().zip(&made).zip(ends).enumerate() {
        let dy = &dy[..rows * made.n()];
        let (adapter, dw) = split(w, made, &x[..rows * made.k()], rows, dy, grads);
        let to = match &mut dx {
            Output::Activation(dx) => Output::Activation(&mut **dx),
            Output::Buffer { to, accumulate } => Output::Buffer { to: &mut **to, accumulate: *accumulate || of > 0 },
        };
        ws.multiply(&Lines::rows(dy, rows, made.n()), &Made::AsIs(made), to, adapter);
        scales.extend(dw);
    }
    gradients(ws, x, rows, scales);
}

/// The backward pass of an adapter; and, where it is needed, that of dŴ.
fn split<'a, E: Element>(
    w: &'a Weight<'a, Cpu<E>>,
    made: &'a MadeWeight<'a, E>,
    x: &'a [E],
    rows: usize,
    dy: &'a [E],
    grads: Option<Gradients<'a, Cpu<E>>>,
) -> (Option<Beside<'a, E>>, Option<WeightGradient<'a, E>>) {
    let (scale, factors, latent) = grads.map_or((None, None, None), |g| (g.scale, g.factors, g.latent));
    let factors = factors.map(|factors| factors.map(|f| &mut f[..]));
    let (scale, latent) = (scale.map(|scale| &mut scale[..]), latent.map(|latent| &mut latent[..]));
    match made {
        MadeWeight::Float(_) => (None, None),
        MadeWeight::Quantized(of) if matches!(w, Weight::LowRank(_)) => {
            (None, scale.map(|scale| WeightGradient { w: of, dy, scale, factors, latent: None }))
        }
        MadeWeight::Quantized(of) => {
            let adapter = beside(w, x, rows, Some(Back { dy, grads: factors }));
            (adapter, scale.map(|scale| WeightGradient { w: of, dy, scale, factors: None, latent }))
        }
    }
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
    let to = Destination::SwiGlu(ToSwiGlu { kept, out: Shared::new(out, rows, n, n) });
    let (x, k) = (&x[..rows * by.k()], by.k());
    let adapters = gate_up.iter().map(|w| beside(w, x, rows, None)).collect();
    ws.multiply_to(&Lines::rows(x, rows, k), &by, to, adapters, Some(by.places()));
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
    let (dy, out) = (&down.dy[..rows * n], &out[..rows * k]);
    let (adapter, dw) = split(&down.weight, &made, out, rows, dy, down.grads);
    let to = Destination::SwiGluGradient(to);
    ws.multiply_to(&Lines::rows(dy, rows, n), &Made::AsIs(&made), to, vec![adapter], None);
    gradients(ws, out, rows, dw.into_iter().collect());
}

/// The gradients from dŴ of weights of one input x.
fn gradients<E: Element>(ws: &Workspace, x: &[E], rows: usize, of: Vec<WeightGradient<E>>) {
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

    /// output = or += a·b, and the adapter's part.
    fn multiply<E: Element, B: Right>(&self, a: &Lines<E>, b: &B, output: Output<Cpu<E>>, adapter: Option<Beside<E>>) {
        let (m, n) = (a.lines, b.n());
        let to = match output {
            Output::Activation(y) => Destination::Activation(ToActivation::new(y, m, n)),
            Output::Buffer { to, accumulate } => Destination::F32(ToF32::new(to, m, n, n, accumulate)),
        };
        self.multiply_to(a, b, to, vec![adapter], None);
    }

    fn multiply_to<E: Element, B: Right>(
        &self,
        a: &Lines<E>,
        b: &B,
        to: Destination<E>,
        adapters: Vec<Option<Beside<E>>>,
        places: Option<&[Place]>,
    ) {
        with_kernel::<E, _>(Product { ws: self, a, b, to, adapters, places });
    }

    /// a·b in f32.
    pub fn multiply_f32<E: Element, B: Right>(&self, a: &Lines<E>, b: &B, to: ToF32) {
        self.multiply_to(a, b, Destination::<E>::F32(to), Vec::new(), None);
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
    adapters: Vec<Option<Beside<'a, E>>>,
    places: Option<&'a [Place]>,
}

impl<E: Element, B: Right> Work for Product<'_, E, B> {
    type Output = ();

    fn run<K: Kernel>(self, kernel: K) {
        let mut packed = self.ws.packed();
        let Packed { left, adapters, .. } = &mut *packed;
        let terms = &adapters.terms(kernel, self.adapters)[..];
        let (left, b, places) = (Left::new(kernel, self.a, left), self.b, self.places);
        match &self.to {
            Destination::Activation(to) => product(kernel, &left, b, Split::Columns, &Plus { to, terms, places }),
            Destination::F32(to) => product(kernel, &left, b, Split::Columns, &Plus { to, terms, places }),
            Destination::Activations(to) => product(kernel, &left, b, Split::Columns, &Plus { to, terms, places }),
            Destination::SwiGlu(to) => product(kernel, &left, b, Split::Pairs, &Plus { to, terms, places }),
            Destination::SwiGluGradient(to) => product(kernel, &left, b, Split::Columns, &Plus { to, terms, places }),
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
            let dlogits = if of.training.is_some() {
                left(chunk, of.vocab, stride).max(left(of.rows % chunk, of.vocab, stride))
            } else {
                0
            };
            let widest = widest.max().unwrap_or(0).max(dlogits).max(left(chunk, of.d, of.d));
            let trained = of.training.map_or(0, |training| {
                let Training { rank, outside, dropout, scales } = training;
                let of_linear = |(n, k): &(usize, usize)| {
                    let (within, beside) = if outside { (0, rank) } else { (rank, 0) };
                    let adapters = AdapterScratch::bytes::<K, E>(*n, *k, beside, of.rows, dropout, 3);
                    let whole =
                        if scales || !outside { GradientScratch::bytes::<K>(*n, *k, within, of.rows) } else { 0 };
                    whole + if beside > 0 { adapters } else { 0 }
                };
                of.linears.iter().map(of_linear).max().unwrap_or(0)
            });
            (widest + trained, rayon::current_num_threads() * thread_bytes::<K>(of.rows))
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
