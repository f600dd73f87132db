use faer::Side;
use faer::linalg::solvers::Solve;

use super::*;
use crate::compute::cpu::testing::random;

/// Inputs that depend on each other, as those of real models do.
fn gram(k: usize, tokens: usize) -> Vec<f32> {
    let (own, shared) = (random(1, tokens * k), random(2, tokens * 4));
    let x = |t: usize, i: usize| own[t * k + i] * (1.0 + (i % 7) as f32) + 3.0 * shared[t * 4 + i % 4];
    (0..k * k).map(|at| (0..tokens).map(|t| x(t, at / k) * x(t, at % k)).sum()).collect()
}

fn start(n: usize, k: usize, scheme: Scheme) -> (Vec<f32>, LinearGrid) {
    let groups = scheme.groups(k);
    let scale = (0..n * groups).map(|i| grid::forward_scale(0.01 + 0.001 * (i % 5) as f32)).collect();
    let zero = scheme.has_zero_points().then(|| (0..n * groups).map(|i| (i % 3) as f32 - 1.0).collect());
    // Rows that fill their grid more or less: not all lose least by the same factor.
    let full = |at: usize| scheme.qmax() * [1.0, 0.6, 0.3][at / k % 3];
    let z = random(3, n * k).iter().enumerate().map(|(at, z)| z * full(at)).collect();
    (z, LinearGrid { scale, zero })
}

/// As GPTQ is written down: H⁻¹ by inverting, the rest of the row updated after every column; by these factors, that
/// which loses least of H.
fn gptq(z: &[f32], of: &LinearGrid, scheme: Scheme, phi: Phi, gram: &[f32], k: usize) -> (Vec<f64>, Vec<f32>) {
    let mean = (0..k).map(|i| f64::from(gram[i * k + i])).sum::<f64>() / k as f64;
    let mut order: Vec<usize> = (0..k).collect();
    order.sort_by(|i, j| gram[j * k + j].total_cmp(&gram[i * k + i]));
    let damped =
        |i: usize, j: usize| f64::from(gram[order[i] * k + order[j]]) + if i == j { DAMPING * mean } else { 0.0 };
    let h = Mat::from_fn(k, k, damped);
    let inverse = h.partial_piv_lu().solve(Mat::<f64>::identity(k, k));
    let u = inverse.llt(Side::Lower).unwrap().L().transpose().to_owned();
    let (group, groups) = (scheme.group_size(k), scheme.groups(k));
    let (mut out, mut factors) = (vec![0.0; z.len()], vec![0.0; z.len() / k]);
    for (row, z) in z.chunks_exact(k).enumerate() {
        let of = |j: usize| {
            let at = row * groups + order[j] / group;
            (of.scale[at], of.zero.as_ref().map_or(0.0, |zero| f64::from(zero[at])))
        };
        let weight: Vec<f64> = (0..k).map(|j| f64::from(of(j).0) * (f64::from(z[order[j]]) - of(j).1)).collect();
        let mut least = f64::INFINITY;
        for factor in FACTORS {
            let (mut w, mut rounded, mut error) = (weight.clone(), vec![0.0; k], vec![0.0; k]);
            for j in 0..k {
                let (s, zero) = (of(j).0 * factor, of(j).1);
                let mut kept = [(w[j] / f64::from(s) + zero) as f32];
                phi.keep(scheme, &mut kept);
                rounded[j] = f64::from(kept[0]);
                let code = rounded[j].round_ties_even().clamp(scheme.qmin().into(), scheme.qmax().into());
                let made = f64::from(grid::forward_scale(s)) * (code - zero);
                let lost = (w[j] - made) / u[(j, j)];
                for t in j + 1..k {
                    w[t] -= lost * u[(j, t)];
                }
                error[j] = weight[j] - made;
            }
            let of_column = |i: usize| (0..k).map(|j| error[j] * h[(j, i)]).sum::<f64>() * error[i];
            let loss = (0..k).map(of_column).sum::<f64>();
            if loss < least {
                (least, factors[row]) = (loss, factor);
                (0..k).for_each(|j| out[row * k + order[j]] = rounded[j]);
            }
        }
    }
    (out, factors)
}

#[test]
fn is_gptq() {
    let cases = [
        ("w4pc", Phi::F32, 35, 150),
        ("w4pc", Phi::Q, 64, 150),
        ("w3g16", Phi::Bf16, 40, 64),
        ("w2g32z", Phi::Int, 33, 96),
    ];
    for (word, phi, n, k) in cases {
        let scheme: Scheme = word.parse().unwrap();
        let (z, of) = start(n, k, scheme);
        let gram = gram(k, 3 * k);
        let (want, by) = gptq(&z, &of, scheme, phi, &gram, k);
        let mut got = z.clone();
        let scale = Order::new(&gram, vec![0.0; k * k], k).unwrap().round(&mut got, &of, scheme, phi, 0);
        let groups = scheme.groups(k);
        let by: Vec<f32> = by.iter().flat_map(|factor| vec![*factor; groups]).collect();
        let by: Vec<f32> = of.scale.iter().zip(by).map(|(scale, factor)| scale * factor).collect();
        // A number that lies between two integers may go either way, and all that follow it in its row with it.
        let off = |(got, want): (&[f32], &[f64])| got.iter().zip(want).any(|(g, w)| (f64::from(*g) - w).abs() > 2e-3);
        let rows = got
            .chunks_exact(k)
            .zip(want.chunks_exact(k))
            .map(off)
            .zip(scale.chunks_exact(groups).zip(by.chunks_exact(groups)));
        let rows = rows.filter(|(off, (scale, by))| *off || scale != by).count();
        assert!(rows * 20 <= n, "{word} {phi}: {rows} of {n} rows differ");
        assert!(got != z && by != of.scale, "{word}");
    }
}

/// What it is for: less is lost of the output than by rounding to the nearest.
#[test]
fn loses_less() {
    let (scheme, n, k): (Scheme, _, _) = ("w3pc".parse().unwrap(), 20, 120);
    let (z, of) = start(n, k, scheme);
    let gram = gram(k, 2 * k);
    let lost = |rounded: &[f32], scale: &[f32]| -> f64 {
        let error = |row: usize, i: usize| {
            let code = grid::code(rounded[row * k + i], scheme.qmin(), scheme.qmax());
            let made = grid::dequantize(code, 0.0, grid::forward_scale(scale[row]));
            f64::from(of.scale[row] * z[row * k + i] - made)
        };
        let of_row = |row: usize| -> f64 {
            (0..k * k).map(|at| error(row, at / k) * f64::from(gram[at]) * error(row, at % k)).sum()
        };
        (0..n).map(of_row).sum()
    };
    let order = Order::new(&gram, vec![0.0; k * k], k).unwrap();
    let by = |rounds: usize| {
        let mut made = z.clone();
        let scale = order.round(&mut made, &of, scheme, Phi::F32, rounds);
        lost(&made, &scale)
    };
    let (gptq, nearest) = (by(0), lost(&z, &of.scale));
    assert!(gptq < 0.5 * nearest, "{gptq} {nearest}");
    let visited = [1, 2, 4, 8].map(by);
    assert!(visited[0] < 0.97 * gptq && visited.is_sorted_by(|more, less| less <= more), "{gptq} {visited:?}");
}

/// Visited often enough, no code could be the one beside it and no scale larger or smaller without losing more: by the definition
/// of the loss.
#[test]
fn ends_where_nothing_alone_loses_less() {
    for word in ["w3pc", "w2g16z", "w4g32s"] {
        let (scheme, n, k): (Scheme, _, _) = (word.parse().unwrap(), 5, 64);
        let (mut z, of) = start(n, k, scheme);
        let gram = gram(k, 3 * k);
        let order = Order::new(&gram, vec![0.0; k * k], k).unwrap();
        let (weights, groups) = (z.clone(), scheme.groups(k));
        let scale = order.round(&mut z, &of, scheme, Phi::F32, 60);
        let mean = (0..k).map(|i| f64::from(gram[i * k + i])).sum::<f64>() / k as f64;
        let h = |i: usize, j: usize| f64::from(gram[i * k + j]) + if i == j { DAMPING * mean } else { 0.0 };
        for row in 0..n {
            let at = |i: usize| row * groups + i / scheme.group_size(k);
            let zero = |i: usize| of.zero.as_ref().map_or(0.0, |zero| f64::from(zero[at(i)]));
            let weight = |i: usize| f64::from(of.scale[at(i)]) * (f64::from(weights[row * k + i]) - zero(i));
            let codes: Vec<f64> =
                (0..k).map(|i| f64::from(grid::code(z[row * k + i], scheme.qmin(), scheme.qmax()))).collect();
            let scales: Vec<f64> = scale[row * groups..][..groups].iter().map(|s| f64::from(*s)).collect();
            let loss = |codes: &[f64], scales: &[f64]| {
                let made = |i: usize| scales[i / scheme.group_size(k)] * (codes[i] - zero(i));
                let error: Vec<f64> = (0..k).map(|i| weight(i) - made(i)).collect();
                (0..k * k).map(|ij| error[ij / k] * h(ij / k, ij % k) * error[ij % k]).sum::<f64>()
            };
            let least = loss(&codes, &scales) * (1.0 - 1e-4);
            for i in 0..k {
                for step in [-1.0, 1.0] {
                    let mut other = codes.clone();
                    other[i] = (codes[i] + step).clamp(scheme.qmin().into(), scheme.qmax().into());
                    assert!(loss(&other, &scales) >= least, "{word} {row} {i} {step}");
                }
            }
            for g in 0..groups {
                // Further than the step between two scales of 8 bits.
                for factor in [0.99, 1.01] {
                    let mut other = scales.clone();
                    other[g] *= factor;
                    assert!(loss(&codes, &other) >= least, "{word} {row}, group {g}, {factor}");
                }
            }
        }
    }
}

/// (V − W)·(H + damping) = [`PART`]·W·D of the V that is rounded, by its definition.
#[test]
fn takes_over_what_the_inputs_lack() {
    for word in ["w4pc", "w3g16z"] {
        let (scheme, n, k): (Scheme, _, _) = (word.parse().unwrap(), 6, 48);
        let (z, of) = start(n, k, scheme);
        let gram = gram(k, 3 * k);
        let mean = (0..k).map(|i| f64::from(gram[i * k + i])).sum::<f64>() / k as f64;
        let drift: Vec<f32> = random(9, k * k).iter().map(|d| 0.1 * mean as f32 * d).collect();
        let mut moved = z.clone();
        let order = Order::new(&gram, drift.clone(), k).unwrap();
        correct(&Workspace::default(), &order.shift.unwrap(), &mut moved, &of, scheme, k);
        let weight = |z: &[f32], row: usize, c: usize| {
            let at = row * scheme.groups(k) + c / scheme.group_size(k);
            f64::from(of.scale[at]) * (f64::from(z[row * k + c]) - of.zero.as_ref().map_or(0.0, |z| z[at].into()))
        };
        let sum = |of: &dyn Fn(usize) -> f64| (0..k).map(of).sum::<f64>();
        for at in 0..n * k {
            let (row, j) = (at / k, at % k);
            let damped = |c: usize| f64::from(gram[c * k + j]) + if c == j { DAMPING * mean } else { 0.0 };
            let left = sum(&|c| (weight(&moved, row, c) - weight(&z, row, c)) * damped(c));
            let right = sum(&|c| 0.25 * weight(&z, row, c) * f64::from(drift[c * k + j]));
            let size = sum(&|c| (weight(&z, row, c) * f64::from(drift[c * k + j])).abs());
            assert!((left - right).abs() < 1e-3 * size, "{word} {row} {j}: {left} {right}");
        }
    }
    let k = 8;
    assert!(Order::new(&gram(k, k), vec![0.0; k * k], k).unwrap().shift.is_none());
    assert!(Order::new(&gram(k, k), vec![f32::NAN; k * k], k).is_none());
}

/// Inputs that have nothing to do with each other, or are not there, leave nothing to make up for.
#[test]
fn of_a_diagonal_is_rounding_to_the_nearest() {
    let (scheme, n, k): (Scheme, _, _) = ("w4pc".parse().unwrap(), 3, 40);
    let (z, of) = start(n, k, scheme);
    for size in [0.0, 2.0] {
        let gram: Vec<f32> = (0..k * k).map(|at| if at / k == at % k { size * at as f32 } else { 0.0 }).collect();
        let mut made = z.clone();
        let scale = Order::new(&gram, vec![0.0; k * k], k).unwrap().round(&mut made, &of, scheme, Phi::F32, 0);
        for (row, (made, z)) in made.chunks_exact(k).zip(z.chunks_exact(k)).enumerate() {
            for (made, z) in made.iter().zip(z) {
                let by = scale[row] / of.scale[row];
                assert!((made * by - z).abs() <= 1e-5 * z.abs(), "{made} {z} {by}");
            }
        }
    }
    assert!(Order::new(&vec![f32::NAN; k * k], vec![0.0; k * k], k).is_none());
}

/// What sums in f32 can leave of a Gram matrix: one that is none. It is damped more.
#[test]
fn a_pivot_that_is_not_positive() {
    let gram = [1.0, 1.5, 0.0, 1.5, 1.0, 0.0, 0.0, 0.0, 1.0];
    let order = Order::new(&gram, vec![0.0; 9], 3).unwrap();
    assert!(order.sizes.iter().chain(&order.shares).all(|x| x.is_finite()));
}

/// With any number of threads the same numbers, for as many inputs as a library would split among them.
#[test]
fn threads_do_not_show() {
    let (scheme, n, k): (Scheme, _, _) = ("w3g100".parse().unwrap(), 50, 700);
    let (gram, (z, of)) = (gram(k, 40), start(n, k, scheme));
    let with = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let factor = cholesky(&gram, &(0..k).collect::<Vec<_>>(), 1.0).unwrap();
            let mut made = z.clone();
            let scale = Order::new(&gram, random(9, k * k), k).unwrap().compensate(
                &Workspace::default(),
                &mut made,
                &of,
                scheme,
                Phi::Q,
            );
            (factor, made, scale)
        })
    };
    let one = with(1);
    assert!((2..5).all(|threads| with(threads) == one));
}
