//! Grids from the GPU beside those of the CPU: the same bits.

use gpu_emulator::Device;

use super::{random, same_bits_as_before};
use crate::compute::cuda::Fitting;
use crate::format::tensor::{Dtype, Tensor};
use crate::quant::Scheme;
use crate::quant::fit::Fit;

/// What becomes of weight i.
type Edit = fn(usize, f32) -> f32;

/// Rows of every kind, `k` wide in groups, as a file would hold them.
fn weights(k: usize, group: usize, dtype: Dtype) -> Vec<f32> {
    let bell = |seed| random(seed, 4 * k).chunks(4).map(|x| x.iter().sum::<f32>()).collect::<Vec<f32>>();
    let rows: [(f32, Edit); 11] = [
        (0.05, |_, w| w),
        (0.05, |i, w| if i % 97 == 13 { 9.0 * w } else { w }),
        // One sign, and one weight of the other.
        (0.05, |_, w| w.abs()),
        (0.05, |i, w| if i == 3 { w.abs() } else { -w.abs() }),
        // Every threshold is as good as another, or nearly: the first is taken.
        (1.0, |_, _| 0.0),
        (1.0, |i, _| if i % 8 == 5 { -0.7 } else { -0.0 }),
        (1.0, |i, _| (i % 15) as f32 - 7.0),
        (1.0, |_, w| w.signum()),
        // The smallest scale, and scales and errors that are beyond all numbers.
        (1e-6, |_, w| w),
        (6e4, |_, w| w),
        (1.0, |i, w| if i % 2 == 0 { 3e38 } else { -3e38 * w.abs().min(1.0) }),
    ];
    let value = |(row, (scale, of)): (usize, (f32, Edit))| {
        bell(row as u64 + 1).into_iter().enumerate().map(move |(i, w)| of(i, w) * scale).collect::<Vec<f32>>()
    };
    // Every weight and its opposite: a grid with a zero point is as good as its mirror image, and only what is rounded when
    // errors are summed up, in whichever order, makes one of them the better one.
    let mirrored = (0..24).flat_map(|seed| {
        let mut w: Vec<f32> = bell(seed + 100).iter().map(|w| w * 0.05).collect();
        for group in w.chunks_mut(group) {
            let len = group.len();
            for i in 0..len / 2 {
                match seed % 2 {
                    0 => group[len - 1 - (i * 7) % (len / 2)] = -group[i],
                    // In the same order: the sums are equal, but for the order of those of parts.
                    _ => group[2 * i + 1] = -group[2 * i],
                }
            }
        }
        w
    });
    // Numbers that the type does not hold would not be finite.
    let most = if dtype == Dtype::F16 { 65504.0 } else { 3.3e38 };
    let rows = rows.into_iter().enumerate().flat_map(value).chain(mirrored);
    rows.map(|w| w.clamp(-most, most)).collect()
}

/// (scale, zero point) of every group, as bits.
fn on_cpu(w: &[f32], k: usize, scheme: Scheme, fit: Fit) -> Vec<[u32; 2]> {
    let mut fitter = fit.of(scheme);
    let groups = w.chunks_exact(scheme.group_size(k)).map(|group| fitter.fit(group));
    groups.map(|grid| [grid.scale.to_bits(), grid.zero_point.to_bits()]).collect()
}

fn on_gpu(gpu: &mut Fitting, w: &Tensor, k: usize, scheme: Scheme, fit: Fit) -> Vec<[u32; 2]> {
    let grid = gpu.fit(w, k, scheme, fit).unwrap();
    assert_eq!(grid.zero.is_some(), scheme.has_zero_points());
    let zero = grid.zero.unwrap_or(vec![0.0; grid.scale.len()]);
    grid.scale.iter().zip(zero).map(|(scale, zero)| [scale.to_bits(), zero.to_bits()]).collect()
}

#[test]
fn the_scales_of_the_cpu() {
    let cases = [
        ("w4pc", 200, Dtype::BF16),
        ("w2g64z", 128, Dtype::F32),
        ("w3g64", 192, Dtype::F16),
        ("w4g128", 256, Dtype::BF16),
        ("w4g8z", 24, Dtype::F16),
        ("w8pcz", 97, Dtype::F32),
        ("w2pc", 1, Dtype::F32),
        ("w3pcz", 300, Dtype::BF16),
        ("w8g32", 64, Dtype::BF16),
    ];
    for device in [Device::new(), Device::new().reversed_blocks().reversed_threads()] {
        device.run(|| {
            let mut gpu = Fitting::open().unwrap();
            for (word, k, dtype) in cases {
                let scheme: Scheme = word.parse().unwrap();
                let values = weights(k, scheme.group_size(k), dtype);
                let w = Tensor::from_f32(&values, dtype, vec![values.len() / k, k]);
                for fit in [Fit::MinMax, Fit::Lp(2.0), Fit::Lp(3.0)] {
                    assert!(Fitting::takes(fit, scheme));
                    let got = on_gpu(&mut gpu, &w, k, scheme, fit);
                    assert_eq!(got, on_cpu(&w.to_f32(), k, scheme, fit), "{word} of {dtype:?}, {fit}");
                    let bits: Vec<u8> = got.iter().flatten().flat_map(|x| x.to_le_bytes()).collect();
                    same_bits_as_before(&format!("{word} {fit}"), &bits);
                }
            }
        });
    }
}

/// Wherever such a weight stands, its group has no scale, and the others have theirs.
#[test]
fn weights_that_are_not_finite() {
    Device::new().run(|| {
        let mut gpu = Fitting::open().unwrap();
        let scheme: Scheme = "w4g40".parse().unwrap();
        for (at, bad) in [(0, f32::NAN), (39, f32::INFINITY), (77, f32::NEG_INFINITY)] {
            let mut values = random(3, 120);
            values[at] = bad;
            let w = Tensor::from_f32(&values, Dtype::F32, vec![1, 120]);
            for fit in [Fit::MinMax, Fit::Lp(3.0)] {
                let scale = gpu.fit(&w, 120, scheme, fit).unwrap().scale;
                let found: Vec<usize> = (0..3).filter(|group| scale[*group].is_nan()).collect();
                assert_eq!(found, [at / 40]);
            }
        }
    });
}

#[test]
fn other_powers_and_scales_of_both_signs_are_left_to_the_cpu() {
    let [scheme, signed]: [Scheme; 2] = ["w4pc", "w4pcs"].map(|word| word.parse().unwrap());
    for p in [0.5, 1.0, 2.4, 4.0] {
        assert!(!Fitting::takes(Fit::Lp(p), scheme));
    }
    assert!(Fitting::takes(Fit::Lp(3.0), scheme) && !Fitting::takes(Fit::Lp(3.0), signed));
}
