//! Comparisons, selection and predicates (PTX ISA 9.7.5, 9.7.6).

use super::op::*;
use super::registers::*;
use super::rounding::flush32;
use crate::ptx::Scalar;

/// The lanes where the comparison holds.
#[inline(always)]
pub fn compare(r: &Registers, test: &Test) -> u32 {
    let Test { f, of, flush, a, b, .. } = *test;
    match of {
        Scalar::S32 => ordered(f, &map(&u32::row(r, a), |x| x as i32), &map(&u32::row(r, b), |x| x as i32)),
        Scalar::B32 | Scalar::U32 => ordered(f, &u32::row(r, a), &u32::row(r, b)),
        Scalar::S64 => ordered(f, &map(&u64::row(r, a), |x| x as i64), &map(&u64::row(r, b), |x| x as i64)),
        Scalar::B64 | Scalar::U64 => ordered(f, &u64::row(r, a), &u64::row(r, b)),
        Scalar::S16 => ordered(f, &map(&u16::row(r, a), |x| x as i16), &map(&u16::row(r, b), |x| x as i16)),
        Scalar::F32 if !flush => float(f, &f32::row(r, a), &f32::row(r, b)),
        Scalar::F32 => float(f, &map(&f32::row(r, a), flush32), &map(&f32::row(r, b), flush32)),
        Scalar::F64 => float(f, &f64::row(r, a), &f64::row(r, b)),
        Scalar::F16 => half(r, f, Half::F16, a, b),
        Scalar::Bf16 => half(r, f, Half::Bf16, a, b),
        _ => ordered(f, &u16::row(r, a), &u16::row(r, b)),
    }
}

fn half(r: &Registers, f: Compare, of: Half, a: Row, b: Row) -> u32 {
    float(f, &map(&u16::row(r, a), |x| of.to_f32(x)), &map(&u16::row(r, b), |x| of.to_f32(x)))
}

#[inline(always)]
fn ordered<T: Copy + Ord>(f: Compare, x: &Lanes<T>, y: &Lanes<T>) -> u32 {
    match f {
        Compare::Eq => where_true(x, y, |x, y| x == y),
        Compare::Ne => where_true(x, y, |x, y| x != y),
        Compare::Lt => where_true(x, y, |x, y| x < y),
        Compare::Le => where_true(x, y, |x, y| x <= y),
        Compare::Gt => where_true(x, y, |x, y| x > y),
        _ => where_true(x, y, |x, y| x >= y),
    }
}

/// Both are numbers, and not the same.
#[allow(clippy::double_comparisons)]
#[inline(always)]
fn differ<T: PartialOrd>(x: T, y: T) -> bool {
    x < y || x > y
}

#[inline(always)]
fn float<T: Copy + PartialOrd>(f: Compare, x: &Lanes<T>, y: &Lanes<T>) -> u32 {
    match f {
        Compare::Eq => where_true(x, y, |x, y| x == y),
        Compare::Ne => where_true(x, y, differ),
        Compare::Lt => where_true(x, y, |x, y| x < y),
        Compare::Le => where_true(x, y, |x, y| x <= y),
        Compare::Gt => where_true(x, y, |x, y| x > y),
        Compare::Ge => where_true(x, y, |x, y| x >= y),
        Compare::EqU => !where_true(x, y, differ),
        Compare::NeU => !where_true(x, y, |x, y| x == y),
        Compare::LtU => !where_true(x, y, |x, y| x >= y),
        Compare::LeU => !where_true(x, y, |x, y| x > y),
        Compare::GtU => !where_true(x, y, |x, y| x <= y),
        Compare::GeU => !where_true(x, y, |x, y| x < y),
        Compare::Number => where_true(x, y, |x, y| x <= y || x > y),
        Compare::Nan => !where_true(x, y, |x, y| x <= y || x > y),
    }
}

#[inline(always)]
fn logic(f: Logic, x: u32, y: u32) -> u32 {
    match f {
        Logic::And => x & y,
        Logic::Or => x | y,
        Logic::Xor => x ^ y,
        Logic::Not => !x,
        Logic::Copy => x,
    }
}

/// The comparison and its opposite, each combined with the third operand.
#[inline(always)]
fn combined(r: &Registers, found: u32, combine: Option<Combine>) -> (u32, u32) {
    match combine {
        None => (found, !found),
        Some(Combine { with, predicate, negate }) => {
            let c = r.predicates[predicate as usize] ^ if negate { u32::MAX } else { 0 };
            (logic(with, found, c), logic(with, !found, c))
        }
    }
}

#[inline(always)]
pub fn set_predicate(r: &mut Registers, mask: u32, found: u32, combine: Option<Combine>, p: Row, q: Row) {
    let (yes, no) = combined(r, found, combine);
    if p != NONE {
        r.set_predicate(p, mask, yes);
    }
    if q != NONE {
        r.set_predicate(q, mask, no);
    }
}

pub fn set(r: &mut Registers, mask: u32, found: u32, combine: Option<Combine>, float: bool, d: Row) {
    let (yes, _) = combined(r, found, combine);
    let value = if float { 1f32.to_bits() } else { u32::MAX };
    let out = std::array::from_fn(|lane| if yes >> lane & 1 == 1 { value } else { 0 });
    u32::set_row(r, d, mask, out);
}

#[inline(always)]
fn select_from<T: InBank>(r: &mut Registers, mask: u32, d: Row, a: Row, b: Row, chosen: u32) {
    let mut out = T::row(r, b);
    let a = T::row(r, a);
    for lane in 0..LANES {
        out[lane] = if chosen >> lane & 1 == 1 { a[lane] } else { out[lane] };
    }
    T::set_row(r, d, mask, out);
}

#[inline(always)]
pub fn select(r: &mut Registers, mask: u32, width: Width, d: Row, [a, b]: [Row; 2], p: Row) {
    let chosen = r.predicates[p as usize];
    match width {
        Width::W64 => select_from::<u64>(r, mask, d, a, b, chosen),
        _ => select_from::<u32>(r, mask, d, a, b, chosen),
    }
}

#[inline(always)]
pub fn predicate(r: &mut Registers, mask: u32, f: Logic, d: Row, a: Row, b: Row) {
    let x = r.predicates[a as usize];
    let y = if b == NONE { x } else { r.predicates[b as usize] };
    r.set_predicate(d, mask, logic(f, x, y));
}
