//! The tile unit of x86 (AMX-BF16), in stable Rust: detection, permission, and the kernel of 2 × 2 tiles.
//!
//! Source: Intel, "Intel 64 and IA-32 Architectures Software Developer's Manual", volume 1 chapter 18 (tiles, LDTILECFG,
//! TDPBF16PS); Linux Documentation/arch/x86/xstate.rst (the permission that a process asks for).

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

use super::kernel::{Ahead, RowPanel};
use super::pairs::Pairs;
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

/// Sums of bf16 products by the tile unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Amx;

impl Pairs for Amx {
    const NAME: &'static str = "amx";
    const CHUNK: usize = 18;
    type Session = Tiles;

    fn session() -> Tiles {
        Tiles::configure()
    }

    #[inline]
    unsafe fn product(
        a: RowPanel,
        b: *const u16,
        steps: usize,
        c: *mut f32,
        ldc: usize,
        accumulate: bool,
        ahead: Ahead,
    ) {
        // SAFETY: as the caller promises.
        unsafe {
            if ahead.many {
                tile_product::<8>(a, b, steps, c, ldc, accumulate, ahead);
            } else {
                tile_product::<4>(a, b, steps, c, ldc, accumulate, ahead);
            }
        }
    }
}

/// What the loop has no register for.
#[repr(C)]
struct Rest {
    /// Rows 0 and 16 of C, and bytes from a row to the next.
    c: *mut f32,
    lower: *mut u8,
    ldc: usize,
    accumulate: usize,
    half: usize,
    ahead_step: usize,
}

/// As [`Pairs::product`]. B streams past the first-level cache (T1), so that A stays there. With each step, `LINES` (4 or
/// 8) cache lines of the next A and two rows of the next C are fetched: what the third-level cache takes to answer is
/// otherwise a quarter of the time.
///
/// # Safety
/// As there.
#[inline(always)]
unsafe fn tile_product<const LINES: usize>(
    a: RowPanel,
    b: *const u16,
    steps: usize,
    c: *mut f32,
    ldc: usize,
    accumulate: bool,
    ahead: Ahead,
) {
    const { assert!(LINES == 4 || LINES == 8) };
    let rest = Rest {
        c,
        lower: c.cast::<u8>().wrapping_add(16 * ldc),
        ldc,
        accumulate: usize::from(accumulate),
        half: 16 * a.row,
        ahead_step: ahead.step,
    };
    macro_rules! run {
        ($more_lines:literal) => {
            asm!(
                "mov {s}, [{x} + 16]",
                "cmp qword ptr [{x} + 24], 0",
                "je 3f",
                "mov {t}, [{x}]",
                "tileloaddt1 tmm0, [{t} + {s}]",
                "tileloaddt1 tmm1, [{t} + {s} + 64]",
                "mov {t}, [{x} + 8]",
                "tileloaddt1 tmm2, [{t} + {s}]",
                "tileloaddt1 tmm3, [{t} + {s} + 64]",
                "jmp 4f",
                "3:",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "4:",
                "mov {s:e}, 64",
                ".p2align 5",
                "2:",
                "tileloadd tmm4, [{a} + {row}]",
                "tileloaddt1 tmm6, [{b} + {s}]",
                "test {p}, {p}",
                "jz 5f",
                "prefetcht1 [{p}]",
                "prefetcht1 [{p} + {q}]",
                "lea {t}, [{p} + 2*{q}]",
                "prefetcht1 [{t}]",
                "prefetcht1 [{t} + {q}]",
                $more_lines,
                "add {p}, [{x} + 40]",
                "5:",
                "tileloaddt1 tmm7, [{b} + {s} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "mov {t}, {a}",
                "add {t}, [{x} + 32]",
                "tileloadd tmm5, [{t} + {row}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "test {pc}, {pc}",
                "jz 6f",
                "prefetchw [{pc}]",
                "prefetchw [{pc} + 64]",
                "prefetchw [{pc} + {pld}]",
                "prefetchw [{pc} + {pld} + 64]",
                "lea {pc}, [{pc} + 2*{pld}]",
                "6:",
                "add {a}, {step}",
                "add {b}, 2048",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "dec {n}",
                "jnz 2b",
                "mov {s}, [{x} + 16]",
                "mov {t}, [{x}]",
                "tilestored [{t} + {s}], tmm0",
                "tilestored [{t} + {s} + 64], tmm1",
                "mov {t}, [{x} + 8]",
                "tilestored [{t} + {s}], tmm2",
                "tilestored [{t} + {s} + 64], tmm3",
                a = inout(reg) a.first => _, row = in(reg) a.row, step = in(reg) a.step,
                b = inout(reg) b => _, n = inout(reg) steps => _,
                p = inout(reg) ahead.rows => _, q = in(reg) ahead.row,
                pc = inout(reg) ahead.c => _, pld = in(reg) ahead.c_row,
                x = in(reg) &rest, s = out(reg) _, t = out(reg) _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack))
        };
    }
    // SAFETY: as the caller promises; fetching ahead touches no memory that the program sees.
    unsafe {
        if LINES == 4 {
            run!("");
        } else {
            run!(
                "lea {t}, [{t} + 2*{q}]\nprefetcht1 [{t}]\nprefetcht1 [{t} + {q}]\nlea {t}, [{t} + 2*{q}]\nprefetcht1 [{t}]\nprefetcht1 [{t} + {q}]"
            );
        }
    }
}
