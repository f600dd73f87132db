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
                    let mut set = vec![2.0; m * n];
                    product(kernel, &left, &b, Split::Columns, &ToF32::new(&mut set, m, n, n, false));
                    assert_eq!(set, want, "{m} {n} {k}");
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
    every_layout::<amx::Amx, f32>(amx::Amx);
    every_layout::<amx::Amx, bf16>(amx::Amx);
}

#[cfg(target_arch = "x86_64")]
#[test]
fn dot_products() {
    if !dot::available() {
        eprintln!("SKIPPED dot products: this machine has no AVX-512 BF16");
        return;
    }
    every_layout::<dot::Dot, f32>(dot::Dot);
    every_layout::<dot::Dot, bf16>(dot::Dot);
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
    {
        if amx::available() {
            made(amx::Amx);
        }
        if dot::available() {
            made(dot::Dot);
        }
    }
}

/// A tile of C as an operand: once its rows as lines of A, once as values of k of B.
fn tiles_as_operands<K: Kernel>(kernel: K) {
    struct Put<'a, K: Kernel> {
        tile: &'a [f32],
        lines: &'a mut [K::Packed],
        columns: &'a mut [K::Packed],
    }

    impl<K: Kernel> Put<'_, K> {
        #[inline(always)]
        fn all<S: pulp::Simd, const V: usize>(self, simd: S) {
            let rows: Vec<[S::f32s; V]> =
                self.tile.chunks(COLUMNS).map(|x| S::as_simd_f32s(x).0.try_into().unwrap()).collect();
            for (i, row) in rows.iter().enumerate() {
                K::put_line(simd, *row, i, self.lines);
            }
            for (pair, rows) in rows.chunks_exact(2).enumerate() {
                K::put_pair(simd, [rows[0], rows[1]], pair, self.columns);
            }
        }
    }

    impl<K: Kernel> pulp::WithSimd for Put<'_, K> {
        type Output = ();
        fn with_simd<S: pulp::Simd>(self, simd: S) {
            match S::F32_LANES {
                16 => self.all::<S, 2>(simd),
                8 => self.all::<S, 4>(simd),
                4 => self.all::<S, 8>(simd),
                _ => self.all::<S, 32>(simd),
            }
        }
    }

    let rows = K::ROWS;
    let (x, b, a) =
        (integers::<f32>(rows * COLUMNS), integers::<bf16>(COLUMNS * COLUMNS), integers::<bf16>(rows * rows));
    let mut held: [Scratch; 4] = Default::default();
    let [lines, columns, packed_b, packed_a] = &mut held;
    let (lines, columns) = (lines.take::<K::Packed>(rows * COLUMNS), columns.take::<K::Packed>(rows * COLUMNS));
    crate::compute::cpu::simd::ARCH.dispatch(Put::<K> { tile: &x, lines, columns });
    let mut c = vec![0.0; rows * COLUMNS];
    let _session = kernel.begin();
    for (transposed, b_of) in
        [Lines::columns(&b, COLUMNS, COLUMNS), Lines::rows(&b, COLUMNS, COLUMNS)].iter().enumerate()
    {
        let packed = packed_b.take::<K::Packed>(COLUMNS * COLUMNS);
        let steps = COLUMNS / K::STEP;
        kernel.pack_columns_for_tiles(b_of, 0, 0..steps, packed);
        // SAFETY: a session lives; the panels are whole, C is ours.
        unsafe {
            kernel.tile(
                kernel.tiled_rows(lines.as_ptr()),
                packed.as_ptr(),
                steps,
                c.as_mut_ptr(),
                COLUMNS,
                false,
                Ahead::NOTHING,
            );
        }
        let at = |k: usize, n: usize| b[if transposed == 0 { k * COLUMNS + n } else { n * COLUMNS + k }].to_f32();
        for (i, c) in c.iter().enumerate() {
            let want: f32 = (0..COLUMNS).map(|k| x[i / COLUMNS * COLUMNS + k] * at(k, i % COLUMNS)).sum();
            assert_eq!(*c, want, "X·B {i}");
        }
    }
    let steps = rows / K::STEP;
    let packed = packed_a.take::<K::Packed>(rows * rows);
    kernel.pack_rows(&Lines::rows(&a, rows, rows), 0, 0..steps, packed);
    // SAFETY: as above.
    unsafe {
        kernel.tile(
            kernel.packed_rows(packed.as_ptr()),
            columns.as_ptr(),
            steps,
            c.as_mut_ptr(),
            COLUMNS,
            false,
            Ahead::NOTHING,
        );
    }
    for (i, c) in c.iter().enumerate() {
        let want: f32 = (0..rows).map(|k| a[i / COLUMNS * rows + k].to_f32() * x[k * COLUMNS + i % COLUMNS]).sum();
        assert_eq!(*c, want, "A·X {i}");
    }
}

#[test]
fn tiles_of_a_product_as_operands() {
    tiles_as_operands(Fma);
    #[cfg(target_arch = "x86_64")]
    {
        if amx::available() {
            tiles_as_operands(amx::Amx);
        }
        if dot::available() {
            tiles_as_operands(dot::Dot);
        }
    }
}

#[test]
fn squares_transposed() {
    let mut block = Square(std::array::from_fn(|i| std::array::from_fn(|j| (16 * i + j) as f32)));
    transpose(&mut block);
    assert!((0..256).all(|at| block.0[at % 16][at / 16] == at as f32));
}
