//! The tile unit of x86 (AMX-BF16), in stable Rust: detection, permission, and the kernel of 2 × 2 tiles.
//!
//! Source: Intel, "Intel 64 and IA-32 Architectures Software Developer's Manual", volume 1 chapter 18 (tiles, LDTILECFG,
//! TDPBF16PS); Linux Documentation/arch/x86/xstate.rst (the permission that a process asks for).

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

use super::kernel::RowPanel;
use crate::quant::isa::{self, Isa};

/// Does this machine have tiles, and may this process use them, as far as Linux and `LRQAT_CPU` say?
pub fn available() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let wanted = isa::forced().ok().flatten().is_none_or(|forced| forced == Isa::Amx);
        wanted && has_tiles() && is_x86_feature_detected!("avx512bf16") && permitted()
    })
}

fn has_tiles() -> bool {
    const OSXSAVE: u32 = 1 << 27;
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    const TILE_STATE: u64 = 3 << 17; // XTILECFG, XTILEDATA
    if __cpuid(0).eax < 7 || __cpuid(1).ecx & OSXSAVE == 0 || !is_x86_feature_detected!("xsave") {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    // SAFETY: the processor has xsave, and the system has enabled it (OSXSAVE).
    let enabled = unsafe { enabled_states() };
    features & AMX_BF16 != 0 && features & AMX_TILE != 0 && enabled & TILE_STATE == TILE_STATE
}

#[target_feature(enable = "xsave")]
fn enabled_states() -> u64 {
    // SAFETY: register 0 exists wherever xsave is enabled.
    unsafe { _xgetbv(0) }
}

/// Asks Linux for the tile registers. It grants them to the process, all its threads, until exec.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: arch_prctl with this code takes a number and writes no memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The operand of LDTILECFG.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Eight tiles of 16 rows of 64 bytes on this thread, released when dropped. Every thread configures its own, for each
/// product anew: another library in the process may change it.
pub struct Tiles(());

impl Tiles {
    /// Panics where tiles are not available.
    pub fn configure() -> Tiles {
        assert!(available(), "no tiles on this machine");
        let mut c = Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
        c.row_bytes[..8].fill(64);
        c.rows[..8].fill(16);
        // SAFETY: tiles are available, and the operand is 64 readable bytes of a valid configuration.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &c, options(nostack, readonly)) };
        Tiles(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: tiles are available, since they were configured.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// C [32, 32] = or += A [32, 32·steps]·B [32·steps, 32], C in f32 with rows `ldc` bytes apart.
///
/// A row of A holds 32 neighbouring k in 64 bytes. Of B there are two tiles a step (columns 0..16 and 16..32), each 16
/// rows of 16 pairs (k, k + 1). B streams past the first-level cache (T1), so that A stays there; two lines from
/// `prefetch` on come to the second level with each step.
///
/// # Safety
/// Tiles are configured on this thread; the pointers are good for these sizes; steps > 0. `prefetch` may point anywhere.
#[inline]
#[allow(clippy::too_many_arguments)]
pub unsafe fn tile_product(
    a: RowPanel,
    b: *const u16,
    steps: usize,
    c: *mut f32,
    ldc: usize,
    accumulate: bool,
    prefetch: *const u8,
) {
    // SAFETY: as the caller promises.
    unsafe {
        let lower = c.cast::<u8>().wrapping_add(16 * ldc);
        asm!(
            "test {add:e}, {add:e}",
            "jz 3f",
            "tileloaddt1 tmm0, [{c} + {ld}]",
            "tileloaddt1 tmm1, [{c} + {ld} + 64]",
            "tileloaddt1 tmm2, [{d} + {ld}]",
            "tileloaddt1 tmm3, [{d} + {ld} + 64]",
            "jmp 2f",
            "3:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            ".p2align 5",
            "2:",
            "tileloadd tmm4, [{a} + {row}]",
            "tileloaddt1 tmm6, [{b} + {s}]",
            "prefetcht1 [{p}]",
            "prefetcht1 [{p} + 64]",
            "tileloaddt1 tmm7, [{b} + {s} + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm5, [{e} + {row}]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {a}, {step}",
            "add {e}, {step}",
            "add {b}, 2048",
            "add {p}, 128",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "dec {n}",
            "jnz 2b",
            "tilestored [{c} + {ld}], tmm0",
            "tilestored [{c} + {ld} + 64], tmm1",
            "tilestored [{d} + {ld}], tmm2",
            "tilestored [{d} + {ld} + 64], tmm3",
            add = in(reg) u32::from(accumulate),
            a = inout(reg) a.first => _, e = inout(reg) a.first.wrapping_add(a.half) => _,
            row = in(reg) a.row, step = in(reg) a.step,
            b = inout(reg) b => _, s = in(reg) 64usize, n = inout(reg) steps => _, p = inout(reg) prefetch => _,
            c = in(reg) c, d = in(reg) lower, ld = in(reg) ldc,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack));
    }
}
