use half::bf16;

use super::super::element::Element;

use super::*;

/// Small integers, so that every product and sum is exact in bf16 and f32.
fn integers<E: Element>(n: usize) -> Vec<E> {
    (0..n).map(|i| E::from_f32((i * 7 % 13) as f32 - 6.0)).collect()
}

/// A matrix [rows, columns], and its transpose as it would lie.
fn both_ways<E: Element>(x: &[E], rows: usize, columns: usize) -> Vec<E> {
    (0..columns).flat_map(|c| (0..rows).map(move |r| x[r * columns + c])).collect()
}

const SHAPES: [(usize, usize, usize); 8] =
    [(1, 1, 1), (3, 5, 7), (32, 32, 32), (33, 31, 65), (40, 70, 100), (64, 96, 576), (100, 64, 2100), (7, 1000, 40)];

fn every_layout<K: Kernel, E: Element>(kernel: K) {
    for (m, n, k) in SHAPES {
        let (a, b) = (integers::<E>(m * k), integers::<E>(k * n));
        let (at, bt) = (both_ways(&a, m, k), both_ways(&b, k, n));
        let want: Vec<f32> = (0..m * n)
            .map(|at| (0..k).map(|p| a[at / n * k + p].to_f32() * b[p * n + at % n].to_f32()).sum())
            .collect();
        for a in [Lines::rows(&a, m, k), Lines::new(&at, m, k, (1, m))] {
            for b in [Lines::columns(&b, k, n), Lines::new(&bt, n, k, (k, 1))] {
                for split in [Split::Columns, Split::Rows(2)] {
                    let (mut to, mut held) = (Scratch::default(), Scratch::default());
                    let left = Left::new(kernel, &a, &mut to);
                    let mut c = vec![1.0; m * n];
                    product(kernel, &left, &b, split, &ToF32::new(&mut c, m, n, n, true));
                    assert!(c.iter().zip(&want).all(|(c, w)| *c == w + 1.0), "{m} {n} {k}");
                    let mut here = Scratch::default();
                    let mut alone = vec![2.0; m * n];
                    product_here(
                        kernel,
                        &Left::here(kernel, &a, &mut here),
                        &b,
                        &ToF32::new(&mut alone, m, n, n, false),
                    );
                    assert_eq!(alone, want, "{m} {n} {k}");
                    let mut rounded = vec![E::zeroed(); m * n];
                    let packed = PackedColumns::new(kernel, &b, &mut held);
                    product(kernel, &left, &packed, Split::Columns, &ToActivation::new(&mut rounded, m, n));
                    assert!(
                        rounded.iter().zip(&want).all(|(c, w)| c.to_f32() == E::from_f32(*w).to_f32()),
                        "{m} {n} {k}"
                    );
                }
            }
        }
    }
}

#[test]
fn fused_multiply_adds() {
    every_layout::<Fma, f32>(Fma);
    every_layout::<Fma, bf16>(Fma);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn tiles() {
    if !amx::available() {
        eprintln!("SKIPPED tiles: this machine has no AMX");
        return;
    }
    every_layout::<Amx, f32>(Amx);
    every_layout::<Amx, bf16>(Amx);
}

/// A weight that is made: W[n, k] of small integers.
struct Counted(usize, usize);

impl Rows for Counted {
    type E = bf16;
    fn n(&self) -> usize {
        self.0
    }
    fn k(&self) -> usize {
        self.1
    }
    fn make(&self, rows: std::ops::Range<usize>, columns: std::ops::Range<usize>, out: &mut [bf16]) {
        let all = integers::<bf16>(self.0 * self.1);
        for (row, out) in rows.zip(out.chunks_exact_mut(columns.len())) {
            out.copy_from_slice(&all[row * self.1..][columns.clone()]);
        }
    }
}

fn made<K: Kernel>(kernel: K) {
    for (m, n, k) in SHAPES {
        let w = integers::<bf16>(n * k);
        let mut to = Scratch::default();
        let (x, dy) = (integers::<bf16>(m * k), integers::<bf16>(m * n));
        let (mut want, mut got) = (vec![0.0; m * n], vec![0.0; m * n]);
        let left = Left::new(kernel, &Lines::rows(&x, m, k), &mut to);
        product(kernel, &left, &Lines::rows(&w, n, k), Split::Columns, &ToF32::new(&mut want, m, n, n, false));
        product(
            kernel,
            &left,
            &Made::Transposed(&Counted(n, k)),
            Split::Columns,
            &ToF32::new(&mut got, m, n, n, false),
        );
        assert_eq!(got, want, "x·Wᵀ {m} {n} {k}");
        let (mut want, mut got) = (vec![0.0; m * k], vec![0.0; m * k]);
        let left = Left::new(kernel, &Lines::rows(&dy, m, n), &mut to);
        product(kernel, &left, &Lines::columns(&w, n, k), Split::Columns, &ToF32::new(&mut want, m, k, k, false));
        product(kernel, &left, &Made::AsIs(&Counted(n, k)), Split::Columns, &ToF32::new(&mut got, m, k, k, false));
        assert_eq!(got, want, "dy·W {m} {n} {k}");
    }
}

#[test]
fn weights_made_block_by_block() {
    made(Fma);
    #[cfg(target_arch = "x86_64")]
    if amx::available() {
        made(Amx);
    }
}
