//! The linear: products with Ŵ made on the fly, and the gradients of A, B and s.

use std::sync::{Mutex, MutexGuard, PoisonError};

use super::Cpu;
use super::element::Element;
use super::made::{LowRankRows, MadeWeight};
use super::product::{
    Kernel, Left, Lines, Made, Right, Scratch, Split, ToActivation, ToF32, Work, product, thread_bytes, with_kernel,
};
use super::weight_gradient::{GradientScratch, Gradients, weight_gradient};
use crate::compute::backend::{LowRankGrads, Output, Weight};

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

/// dx [rows, k] = dy [rows, n]·Ŵ (+ dx), and the gradients of a low-rank weight.
pub fn backward<E: Element>(
    ws: &Workspace,
    x: &[E],
    rows: usize,
    w: &Weight<Cpu<E>>,
    dy: &[E],
    dx: Output<Cpu<E>>,
    grads: Option<LowRankGrads<Cpu<E>>>,
) {
    let (n, k) = w.shape();
    let (x, dy) = (&x[..rows * k], &dy[..rows * n]);
    let made = MadeWeight::new(w);
    ws.multiply(&Lines::rows(dy, rows, n), &Made::AsIs(&made), dx);
    if let (Some(grads), MadeWeight::LowRank(w)) = (grads, &made) {
        let grads = Gradients { scale: grads.scale, a: grads.a, b: grads.b };
        with_kernel::<E, _>(Gradient { ws, w, x, dy, rows, grads });
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
        with_kernel::<E, _>(Product { ws: self, a, b, to });
    }

    /// c [m, n] = or += a·b, in f32.
    pub fn multiply_f32<E: Element, A: Element, B: Right>(&self, a: &Lines<A>, b: &B, c: &mut [f32], accumulate: bool) {
        let (m, n) = (a.lines, b.n());
        let to = Destination::<E>::F32(ToF32::new(c, m, n, n, accumulate));
        with_kernel::<E, _>(Product { ws: self, a, b, to });
    }
}

enum Destination<'a, E> {
    Activation(ToActivation<'a, E>),
    F32(ToF32<'a>),
}

struct Product<'a, E, A, B> {
    ws: &'a Workspace,
    a: &'a Lines<'a, A>,
    b: &'a B,
    to: Destination<'a, E>,
}

impl<E: Element, A: Element, B: Right> Work for Product<'_, E, A, B> {
    type Output = ();

    fn run<K: Kernel>(self, kernel: K) {
        let mut packed = self.ws.packed();
        let left = Left::new(kernel, self.a, &mut packed.left);
        match &self.to {
            Destination::Activation(to) => product(kernel, &left, self.b, Split::Columns, to),
            Destination::F32(to) => product(kernel, &left, self.b, Split::Columns, to),
        }
    }
}

/// Bytes of packed operands, and of all threads, for linears of these shapes (n, k), a head of [vocab, d] in chunks of
/// `chunk` rows and passes over `rows` tokens; rank 0 without training.
pub fn scratch<E: Element>(
    linears: &[(usize, usize)],
    rank: usize,
    vocab: usize,
    d: usize,
    rows: usize,
    chunk: usize,
) -> (usize, usize) {
    struct Bytes<'a>(&'a [(usize, usize)], [usize; 5]);
    impl Work for Bytes<'_> {
        type Output = (usize, usize);
        fn run<K: Kernel>(self, _: K) -> (usize, usize) {
            let Bytes(linears, [rank, vocab, d, rows, chunk]) = self;
            let left =
                |m: usize, k: usize| size_of::<K::Packed>() * m.next_multiple_of(K::ROWS) * k.next_multiple_of(K::STEP);
            let widest = linears.iter().map(|(n, k)| left(rows, *n.max(k))).max().unwrap_or(0);
            let head = left(chunk, if rank > 0 { vocab } else { d });
            let gradient = |(n, k): &(usize, usize)| GradientScratch::bytes::<K>(*n, *k, rank, rows);
            let gradients = if rank > 0 { linears.iter().map(gradient).max().unwrap_or(0) } else { 0 };
            (widest.max(head) + gradients, rayon::current_num_threads() * thread_bytes::<K>(rows))
        }
    }
    with_kernel::<E, _>(Bytes(linears, [rank, vocab, d, rows, chunk]))
}

struct Gradient<'a, E> {
    ws: &'a Workspace,
    w: &'a LowRankRows<'a, E>,
    x: &'a [E],
    dy: &'a [E],
    rows: usize,
    grads: Gradients<'a>,
}

impl<E: Element> Work for Gradient<'_, E> {
    type Output = ();

    fn run<K: Kernel>(self, kernel: K) {
        let mut packed = self.ws.packed();
        weight_gradient(kernel, &mut packed.gradient, self.w, self.x, self.dy, self.rows, self.grads);
    }
}
