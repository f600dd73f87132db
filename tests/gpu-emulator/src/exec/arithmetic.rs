//! Operations on registers alone, compiled twice: for every x86-64, and with AVX2 and FMA, where the loops over lanes
//! become a few instructions.

use super::op::{Arithmetic, Row};
use super::registers::{InBank, Registers, map};
use super::{bits, compare, convert, float, integer};

/// Runs one operation on the lanes of the mask; the lanes that divide by zero, which nothing else does wrong.
pub type Run = fn(&mut Registers, &Arithmetic, &[Row], u32) -> u32;

/// The best that this machine has.
pub fn best() -> Run {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        return |registers, op, lists, mask| {
            // SAFETY: the machine has both features.
            unsafe { run_avx2(registers, op, lists, mask) }
        };
    }
    |registers, op, lists, mask| run(registers, op, lists, mask)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2(registers: &mut Registers, op: &Arithmetic, lists: &[Row], mask: u32) -> u32 {
    run(registers, op, lists, mask)
}

#[inline(always)]
fn run(r: &mut Registers, op: &Arithmetic, lists: &[Row], mask: u32) -> u32 {
    use Arithmetic::*;
    match *op {
        Copy32 { d, a } => {
            let x = u32::row(r, a);
            u32::set_row(r, d, mask, x);
        }
        Copy64 { d, a } => {
            let x = u64::row(r, a);
            u64::set_row(r, d, mask, x);
        }
        Low { d, a } => {
            let x = map(&u64::row(r, a), |x| x as u32);
            u32::set_row(r, d, mask, x);
        }
        Extend { d, a } => {
            let x = map(&u32::row(r, a), u64::from);
            u64::set_row(r, d, mask, x);
        }
        Pack { d, wide, parts, width } => bits::pack(r, mask, wide, d, parts.of(lists), width),
        Unpack { parts, width, a, wide } => bits::unpack(r, mask, parts.of(lists), width, a, wide),
        Integer { f, width, d, from } => return integer::integer(r, mask, f, width, d, from),
        Wide { signed, narrow, d, from } => integer::wide(r, mask, signed, narrow, d, from),
        Shift { f, width, d, from } => integer::shift(r, mask, f, width, d, from),
        Count { f, width, d, a } => bits::count(r, mask, f, width, d, a),
        Extract { signed, width, d, from } => bits::extract(r, mask, signed, width, d, from),
        Insert { width, d, from } => bits::insert(r, mask, width, d, from),
        Permute { f, d, from } => bits::permute(r, mask, f, d, from),
        Funnel { right, wrap, d, from } => bits::funnel(r, mask, right, wrap, d, from),
        Lop3 { table, d, from } => bits::lop3(r, mask, table, d, from),
        Carry { op, width, d, from } => {
            let out = integer::carry(r, mask, op, width, d, from);
            if op.gives {
                r.carry = r.carry & !mask | out & mask;
            }
        }
        F32 { f, mode, d, from } => float::f32s(r, mask, f, mode, d, from),
        F64 { f, d, from } => float::f64s(r, mask, f, d, from),
        Half { op, d, from } => float::halves(r, mask, op, d, from),
        Convert { how, d, a } => convert::convert(r, mask, &how, d, a),
        ConvertPair { to, mode, d, from } => convert::pair(r, mask, to, mode, d, from),
        SetPredicate { test, p, q } => {
            let found = compare::compare(r, &test);
            compare::set_predicate(r, mask, found, test.combine, p, q);
        }
        Set { test, float, d } => {
            let found = compare::compare(r, &test);
            compare::set(r, mask, found, test.combine, float, d);
        }
        Select { width, d, from, p } => compare::select(r, mask, width, d, from, p),
        Predicate { f, d, a, b } => compare::predicate(r, mask, f, d, a, b),
    }
    0
}

impl super::op::List {
    #[inline(always)]
    pub fn of(self, lists: &[Row]) -> &[Row] {
        &lists[self.start as usize..(self.start + self.len) as usize]
    }
}
