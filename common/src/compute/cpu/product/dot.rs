//! Dot products of pairs of bf16 in vector registers (AVX-512 BF16), where the processor runs them at twice the rate of
//! multiply-adds of f32: AMD's since Zen 4.
//!
//! Source: Intel, "Intel 64 and IA-32 Architectures Software Developer's Manual", volume 2, VDPBF16PS; AMD64 Architecture
//! Programmer's Manual, volume 3, CPUID function 0 (vendor).

use std::arch::x86_64::*;
use std::sync::OnceLock;

use super::amx;
use super::kernel::{Ahead, RowPanel};
use super::pairs::Pairs;
use crate::quant::isa::{self, Isa};

/// Does this machine have them?
pub fn available() -> bool {
    is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512bw")
}

/// Are they the best that it has, or what `LRQAT_CPU` names? Intel's processors run them no faster than multiply-adds.
pub fn preferred() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let wanted = match isa::forced().ok().flatten() {
            None => !amx::available() && vendor() == *b"AuthenticAMD",
            Some(forced) => forced == Isa::Avx512Bf16,
        };
        wanted && available()
    })
}

fn vendor() -> [u8; 12] {
    let said = __cpuid(0);
    bytemuck::cast([said.ebx, said.edx, said.ecx])
}

/// Sums of bf16 products by vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dot;

impl Pairs for Dot {
    const NAME: &'static str = "avx512bf16";
    const CHUNK: usize = 9;
    type Session = ();

    fn session() {
        assert!(available(), "no AVX-512 BF16 on this machine");
    }

    #[inline]
    unsafe fn product(a: RowPanel, b: *const u16, steps: usize, c: *mut f32, ldc: usize, accumulate: bool, _: Ahead) {
        // SAFETY: a session says that the instructions are there; else as the caller promises.
        unsafe { tile_product(a, b, steps, c, ldc, accumulate) }
    }
}

/// Rows whose sums are in registers: with two registers of columns 16 sums, which hide the latency.
const ROWS: usize = 8;

/// As [`Pairs::product`].
///
/// # Safety
/// As there; AVX-512 BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile_product(a: RowPanel, b: *const u16, steps: usize, c: *mut f32, ldc: usize, accumulate: bool) {
    for from in (0..32).step_by(ROWS) {
        let row_of_c = |row: usize| c.wrapping_byte_add((from + row) * ldc);
        let mut sums = [[_mm512_setzero_ps(); 2]; ROWS];
        if accumulate {
            for (row, sums) in sums.iter_mut().enumerate() {
                for (half, sum) in sums.iter_mut().enumerate() {
                    // SAFETY: the tile lies within C.
                    *sum = unsafe { _mm512_loadu_ps(row_of_c(row).wrapping_add(16 * half)) };
                }
            }
        }
        let rows = a.first.wrapping_add(from * a.row);
        for step in 0..steps {
            let rows = rows.wrapping_add(step * a.step);
            let b = b.wrapping_add(step * 1024);
            for pair in 0..16 {
                // SAFETY: a step of B is two tiles of 512 numbers, one of A 64 bytes a row; all bits are numbers.
                let b =
                    [0, 512].map(|tile| unsafe { bits(_mm512_loadu_si512(b.wrapping_add(tile + 32 * pair).cast())) });
                for (row, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: as above.
                    let a = unsafe { rows.wrapping_add(row * a.row + 4 * pair).cast::<i32>().read_unaligned() };
                    let a = bits(_mm512_set1_epi32(a));
                    for (sum, b) in sums.iter_mut().zip(b) {
                        *sum = _mm512_dpbf16_ps(*sum, a, b);
                    }
                }
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            for (half, sum) in sums.iter().enumerate() {
                // SAFETY: as above, and nobody else has it.
                unsafe { _mm512_storeu_ps(row_of_c(row).wrapping_add(16 * half), *sum) };
            }
        }
    }
}

/// The same bits as bf16.
#[inline]
#[target_feature(enable = "avx512f")]
fn bits(x: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes, of any content.
    unsafe { std::mem::transmute(x) }
}
