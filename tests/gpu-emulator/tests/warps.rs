//! Exchange between lanes, divergence, atomics.

use gpu_emulator::Device;

use crate::device::{load, shape};
use cudarc::driver::PushKernelArg;

fn values() -> Vec<i32> {
    (0..32).map(|i| (i * 7 + 3) % 23).collect()
}

fn each_order(body: impl Fn() + Copy) {
    Device::new().run(body);
    Device::new().reversed_threads().reversed_blocks().run(body);
    Device::new().without_races().run(body);
}

fn run(kernel: &str, input: &[i32], per: usize) -> Vec<u32> {
    let warp = load("torture_warp");
    let from = warp.stream.clone_htod(input).unwrap();
    let mut to = warp.stream.alloc_zeros::<u32>(32 * per).unwrap();
    let kernel = warp.kernel(kernel);
    let mut launch = warp.stream.launch_builder(&kernel);
    launch.arg(&mut to).arg(&from);
    unsafe { launch.launch(shape(1, 32)) }.unwrap();
    warp.stream.clone_dtoh(&to).unwrap()
}

fn ballot(f: impl Fn(usize) -> bool) -> u32 {
    (0..32).map(|lane| (f(lane) as u32) << lane).sum()
}

#[test]
fn exchange() {
    each_order(|| {
        let v = values();
        let found = run("exchange", &v, 16);
        let sum = |lanes: std::ops::Range<usize>| v[lanes].iter().sum::<i32>() as u32;
        for (t, row) in found.chunks_exact(16).enumerate() {
            let at = |lane: usize| v[lane] as u32;
            let wanted = [
                ballot(|lane| v[lane] & 1 == 1),
                v.contains(&5) as u32,
                1,
                sum(0..32),
                at(if t + 3 < 32 { t + 3 } else { t }),
                at(if t >= 5 { t - 5 } else { t }),
                at(t / 8 * 8 + 2),
                ballot(|lane| v[lane] & 3 == v[t] & 3),
                at(t ^ 21),
                (v.iter().min().unwrap() - 10) as u32,
                *v.iter().max().unwrap() as u32,
                v.iter().fold(0, |x, y| x ^ y) as u32,
                u32::MAX,
                0,
                at(if t % 16 + 6 < 16 { t + 6 } else { t }),
                if t < 16 { 3 * sum(0..16) } else { 5 * sum(16..32) },
            ];
            assert_eq!(row, wanted, "lane {t}");
        }
    });
}

#[test]
fn divergence() {
    each_order(|| {
        let v = values();
        let sum = |t: usize| {
            let mut sum = 0;
            for k in 0..v[t] {
                if k % 3 == t as i32 % 3 {
                    continue;
                }
                if k == 17 {
                    break;
                }
                sum += k * (t as i32 + 1);
            }
            sum
        };
        let found = run("diverge", &v, 1);
        for (t, found) in found.iter().enumerate() {
            let more = if t < 24 { sum(t ^ 2) } else { 0 };
            assert_eq!(*found as i32, sum(t ^ 1) + more, "lane {t}");
        }
    });
}

#[test]
fn atomics() {
    each_order(|| {
        let input: Vec<u32> = (0..256u32).map(|i| i.wrapping_mul(2654435761) >> 9).collect();
        let warp = load("torture_warp");
        let from = warp.stream.clone_htod(&input).unwrap();
        let start: Vec<u32> = (0..32).map(|i| if matches!(i, 1 | 5) { u32::MAX } else { 0 }).collect();
        let mut to = warp.stream.clone_htod(&start).unwrap();
        let kernel = warp.kernel("atomics");
        let mut launch = warp.stream.launch_builder(&kernel);
        launch.arg(&mut to).arg(&from);
        unsafe { launch.launch(shape(4, 64)) }.unwrap();
        let found = warp.stream.clone_dtoh(&to).unwrap();
        let sum = |list: &[u32]| list.iter().fold(0u32, |x, y| x.wrapping_add(*y));
        let mut wanted = start;
        wanted[0] = sum(&input);
        wanted[1] = *input.iter().min().unwrap();
        wanted[2] = *input.iter().max().unwrap();
        wanted[3] = input.iter().fold(0, |x, y| x ^ y);
        wanted[4] = input.iter().fold(0, |x, y| x | y & 0xff);
        wanted[5] = input.iter().fold(u32::MAX, |x, y| x & (y | 0xff00));
        // Counts up to 99 and down from 49, 256 times.
        wanted[6] = 256 % 100;
        wanted[7] = 49 - (256 - 1) % 50;
        for block in 0..4 {
            wanted[8 + block] = sum(&input[64 * block..64 * (block + 1)]);
        }
        wanted[16] = input.iter().map(|x| (x & 15) as f32).sum::<f32>().to_bits();
        let long: u64 = input.iter().map(|x| (*x as u64) << 20).sum();
        (wanted[18], wanted[19], wanted[20]) = (long as u32, (long >> 32) as u32, 7);
        assert_eq!(found, wanted);
    });
}
