//! Fields, counts and permutations of bits (PTX ISA 9.7.1.16 and following, 9.7.7, 9.7.8), and moves that pack and
//! unpack (9.7.9.3).

use super::op::*;
use super::registers::*;

#[inline(always)]
pub fn count(r: &mut Registers, mask: u32, f: Count, width: Width, d: Row, a: Row) {
    if f == Count::Reverse {
        if width == Width::W64 {
            let out = map(&u64::row(r, a), u64::reverse_bits);
            return u64::set_row(r, d, mask, out);
        }
        let out = map(&u32::row(r, a), u32::reverse_bits);
        return u32::set_row(r, d, mask, out);
    }
    let bits = if width == Width::W64 { 64 } else { 32 };
    let x = if width == Width::W64 { u64::row(r, a) } else { map(&u32::row(r, a), u64::from) };
    let out = map(&x, |x| match f {
        Count::Ones => x.count_ones(),
        Count::LeadingZeros => x.leading_zeros() - (64 - bits),
        Count::FindSigned { shift } => find(if x >> (bits - 1) & 1 == 1 { low(!x, bits) } else { x }, bits, shift),
        Count::FindUnsigned { shift } => find(x, bits, shift),
        Count::Reverse => 0,
    });
    u32::set_row(r, d, mask, out);
}

/// The highest one, or how far it has to be shifted to become the highest bit.
#[inline(always)]
fn find(x: u64, bits: u32, shift: bool) -> u32 {
    match x {
        0 => u32::MAX,
        _ if shift => x.leading_zeros() - (64 - bits),
        _ => 63 - x.leading_zeros(),
    }
}

#[inline(always)]
fn low(x: u64, bits: u32) -> u64 {
    if bits >= 64 { x } else { x & ((1 << bits) - 1) }
}

fn field_operands(r: &Registers, width: Width, a: Row) -> Lanes<u64> {
    if width == Width::W64 { u64::row(r, a) } else { map(&u32::row(r, a), u64::from) }
}

fn set_field(r: &mut Registers, mask: u32, width: Width, d: Row, out: Lanes<u64>) {
    match width {
        Width::W64 => u64::set_row(r, d, mask, out),
        _ => u32::set_row(r, d, mask, map(&out, |x| x as u32)),
    }
}

/// `bfe`: bits above the operand are zero, or its sign.
pub fn extract(r: &mut Registers, mask: u32, signed: bool, width: Width, d: Row, [a, at, len]: [Row; 3]) {
    let bits = if width == Width::W64 { 64 } else { 32 };
    let x = field_operands(r, width, a);
    let out = map3(&x, &u32::row(r, at), &u32::row(r, len), |x, at, len| {
        let (at, len) = (at & 255, len & 255);
        if len == 0 {
            return 0;
        }
        let extended = if signed { ((x << (64 - bits)) as i64 >> (64 - bits)) as i128 } else { x as i128 };
        let sign_at = (at + len - 1).min(bits - 1);
        let field = (extended >> at.min(127)) as u64;
        let negative = signed && x >> sign_at & 1 == 1;
        let kept = low(field, len);
        low(if negative { kept | !low(u64::MAX, len) } else { kept }, bits)
    });
    set_field(r, mask, width, d, out);
}

/// `bfi`
pub fn insert(r: &mut Registers, mask: u32, width: Width, d: Row, [a, b, at, len]: [Row; 4]) {
    let bits = if width == Width::W64 { 64 } else { 32 };
    let (x, y) = (field_operands(r, width, a), field_operands(r, width, b));
    let (at, len) = (u32::row(r, at), u32::row(r, len));
    let mut out = [0; LANES];
    for lane in 0..LANES {
        let (at, len) = (at[lane] & 255, len[lane] & 255);
        let field = if at >= bits { 0 } else { low(low(u64::MAX, len) << at, bits) };
        out[lane] = y[lane] & !field | (x[lane] << at.min(63)) & field;
    }
    set_field(r, mask, width, d, out);
}

/// `prmt`: four bytes of the eight of b and a.
pub fn permute(r: &mut Registers, mask: u32, f: Permute, d: Row, [a, b, c]: [Row; 3]) {
    let out = map3(&u32::row(r, a), &u32::row(r, b), &u32::row(r, c), |a, b, c| {
        let bytes = (a as u64 | (b as u64) << 32).to_le_bytes();
        let n = c & 3;
        let pick = |i: u32| -> u8 {
            let control = match f {
                Permute::Index => c >> (4 * i) & 15,
                Permute::Forward4 => n + i,
                Permute::Backward4 => (8 + n - i) & 7,
                Permute::Replicate8 => n,
                Permute::EdgeLeft => n.max(i),
                Permute::EdgeRight => n.min(i),
                Permute::Replicate16 => (n & 1) * 2 + (i & 1),
            };
            let byte = bytes[control as usize & 7];
            // With the highest bit of its control, a byte becomes eight copies of its sign.
            if f == Permute::Index && control & 8 != 0 { (byte as i8 >> 7) as u8 } else { byte }
        };
        u32::from_le_bytes([pick(0), pick(1), pick(2), pick(3)])
    });
    u32::set_row(r, d, mask, out);
}

#[inline(always)]
pub fn funnel(r: &mut Registers, mask: u32, right: bool, wrap: bool, d: Row, [a, b, by]: [Row; 3]) {
    let out = map3(&u32::row(r, a), &u32::row(r, b), &u32::row(r, by), |a, b, by| {
        let both = (b as u64) << 32 | a as u64;
        let by = if wrap { by & 31 } else { by.min(32) };
        if right { (both >> by) as u32 } else { (both << by >> 32) as u32 }
    });
    u32::set_row(r, d, mask, out);
}

/// Any function of three bits, given by its table.
#[inline(always)]
pub fn lop3(r: &mut Registers, mask: u32, table: u8, d: Row, [a, b, c]: [Row; 3]) {
    let (a, b, c) = (u32::row(r, a), u32::row(r, b), u32::row(r, c));
    let mut out = [0u32; LANES];
    for entry in (0..8).filter(|entry| table >> entry & 1 == 1) {
        let flip = |bit: u8| if entry >> bit & 1 == 1 { 0 } else { u32::MAX };
        let (fa, fb, fc) = (flip(2), flip(1), flip(0));
        for lane in 0..LANES {
            out[lane] |= (a[lane] ^ fa) & (b[lane] ^ fb) & (c[lane] ^ fc);
        }
    }
    u32::set_row(r, d, mask, out);
}

#[inline(always)]
pub fn pack(r: &mut Registers, mask: u32, wide: bool, d: Row, parts: &[Row], width: u32) {
    let mut out = [0u64; LANES];
    for (index, part) in parts.iter().enumerate() {
        let x = u32::row(r, *part);
        for lane in 0..LANES {
            out[lane] |= (x[lane] as u64) << (index as u32 * width);
        }
    }
    match wide {
        true => u64::set_row(r, d, mask, out),
        false => u32::set_row(r, d, mask, map(&out, |x| x as u32)),
    }
}

#[inline(always)]
pub fn unpack(r: &mut Registers, mask: u32, parts: &[Row], width: u32, a: Row, wide: bool) {
    let x = if wide { u64::row(r, a) } else { map(&u32::row(r, a), u64::from) };
    for (index, part) in parts.iter().enumerate() {
        if *part != NONE {
            let out = map(&x, |x| low(x >> (index as u32 * width), width) as u32);
            u32::set_row(r, *part, mask, out);
        }
    }
}
