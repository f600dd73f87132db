//! The search against its definition in f64.

use super::*;
use crate::quant::lowrank::generator;
use rand_chacha::rand_core::Rng;

/// Sums of eight uniform numbers: bell-shaped, with a few far out.
fn weights(n: usize, shift: f32, seed: u64) -> Vec<f32> {
    let mut rng = generator(seed, "weights");
    let mut bell = || (0..8).map(|_| rng.next_u32() as f32 / u32::MAX as f32 - 0.5).sum::<f32>();
    (0..n).map(|i| (bell() + shift) * if i % 97 == 13 { 3.0 } else { 1.0 } * 0.05).collect()
}

fn span(w: &[f32]) -> (f32, f32) {
    w.iter().fold((0f32, 0f32), |(low, high), w| (low.min(*w), high.max(*w)))
}

/// Σ|w − Q(w)|^p as the definition says it, in f64.
fn error(w: &[f32], g: Grid, p: f64, scheme: Scheme) -> f64 {
    let (s, z) = (f64::from(g.scale), f64::from(g.zero_point));
    let (qmin, qmax) = (f64::from(scheme.qmin()), f64::from(scheme.qmax()));
    let nearest = |w: f64| s * ((w / s + z).round_ties_even().clamp(qmin, qmax) - z);
    w.iter().map(|w| (f64::from(*w) - nearest(f64::from(*w))).abs().powf(p)).sum()
}

#[test]
fn no_candidate_is_better_than_the_one_found() {
    for (word, p) in [
        ("w4pc", 3.0),
        ("w3pc", 2.0),
        ("w2pc", 2.4),
        ("w8pc", 4.0),
        ("w4pcz", 3.0),
        ("w2pcz", 2.0),
        ("w3pcz", 0.5),
        ("w4pcs", 3.0),
        ("w2pcs", 2.0),
        ("w3pcs", 0.5),
    ] {
        let scheme: Scheme = word.parse().unwrap();
        let mut search = Search::new(scheme, p);
        for (i, n) in [1, 5, 64, 150, 1000].into_iter().enumerate() {
            let w = weights(n, if i % 2 == 0 { 0.0 } else { 0.7 }, i as u64);
            let (min, max) = span(&w);
            let found = error(&w, search.best(&w, min, max), f64::from(p), scheme);
            let candidates = (1..=100).flat_map(|i| (-4..=4).map(move |k| (i as f32 / 100.0, k as f32)));
            let least = candidates.filter_map(|(fraction, step)| match scheme.symmetry {
                Symmetry::Asymmetric => (step.abs() * 4.0 <= 2f32.powi(scheme.bits as i32))
                    .then(|| Grid::asymmetric(min, max, fraction, step, scheme)),
                Symmetry::Signed => [-1.0, 0.0]
                    .contains(&step)
                    .then(|| Grid { zero_point: step, ..Grid::symmetric(max.max(-min), fraction, scheme.qmax()) }),
                Symmetry::Symmetric => Some(Grid::symmetric(max.max(-min), fraction, scheme.qmax())),
            });
            let least = least.map(|g| error(&w, g, f64::from(p), scheme)).fold(f64::INFINITY, f64::min);
            assert!(found <= least * (1.0 + 1e-5) + 1e-20, "{word} {p} {n}: {found}, there is {least}");
        }
    }
}

#[test]
fn what_was_found_before_does_not_matter() {
    let scheme: Scheme = "w4g64".parse().unwrap();
    let mut used = Search::new(scheme, 3.0);
    for seed in 0..20 {
        let w = weights(64, 0.0, seed);
        let (min, max) = span(&w);
        assert_eq!(used.best(&w, min, max), Search::new(scheme, 3.0).best(&w, min, max));
    }
}

#[test]
fn a_weight_alone_keeps_the_whole_range() {
    let scheme: Scheme = "w4pc".parse().unwrap();
    assert_eq!(Search::new(scheme, 3.0).best(&[0.7], 0.0, 0.7).scale, 0.7 / 7.0);
    // −8 steps reach further than 7: 87.5 hundredths of the range would do as well, but are no candidate.
    assert_eq!(Search::new(scheme, 3.0).best(&[-0.7], -0.7, 0.0).scale, 0.7 / 7.0);
}

#[cfg(target_arch = "x86_64")]
fn split(w: &[f32], loops: impl Loops) -> (Vec<f32>, Vec<f32>) {
    let (mut above, mut below) = (vec![0.0; w.len() + LANES], vec![0.0; w.len() + LANES]);
    let (a, b) = loops.split(w, &mut above, &mut below);
    (above[..a].to_vec(), below[..b].to_vec())
}

#[cfg(target_arch = "x86_64")]
#[test]
fn avx512_gives_the_same_bits() {
    let pulp::Arch::V4(simd) = *ARCH else {
        eprintln!("SKIPPED avx512_gives_the_same_bits: the machine has no AVX-512");
        return;
    };
    let inverse: [f32; LANES] = std::array::from_fn(|lane| 7.0 * (lane as f32 + 1.3));
    let end: [f32; LANES] = std::array::from_fn(|lane| (lane % 9) as f32);
    for n in [0, 1, 3, 4, 63, 64] {
        let w = weights(n, 0.0, 3);
        let parts = split(&w, Plain);
        assert_eq!(split(&w, simd), parts);
        for part in [parts.0, parts.1] {
            let [ours, plain] = [simd.sums(&part, &inverse, &end, Cube), Plain.sums(&part, &inverse, &end, Cube)];
            assert_eq!(ours.map(f32::to_bits), plain.map(f32::to_bits), "{n}");
            let unit: Errors = [[0.3; LANES / 2], [0.7; LANES / 2]];
            for least in [0.0, 1e-3, 1e9] {
                let (mut here, mut there) = (Errors::default(), Errors::default());
                let within = simd.add(&mut here, &ours, &unit, least);
                assert_eq!((within, here), (Plain.add(&mut there, &plain, &unit, least), there), "{n} {least}");
                assert_eq!(simd.first_least(&here), Plain.first_least(&there));
            }
        }
    }
    // The first of equals, whatever is no number.
    let mut errors = [[f64::NAN, 2.0, 1.0, 5.0, 1.0, 3.0, 4.0, 1.5], [1.0; LANES / 2]];
    for first in [2, 4, 8] {
        assert_eq!((simd.first_least(&errors), Plain.first_least(&errors)), ((first, 1.0), (first, 1.0)));
        errors.as_flattened_mut()[first] = f64::NAN;
    }
}
