//! Integer arithmetic (PTX ISA 9.7.1, 9.7.2) and logic (9.7.7).

use super::op::*;
use super::registers::*;

/// An unsigned word with what its signed reading needs.
trait Word: InBank + Ord + std::ops::BitAnd<Output = Self> + std::ops::BitOr<Output = Self> {
    const BITS: u32;
    fn signed(self) -> i64;
    fn unsigned(self) -> u64;
    fn from_low(bits: u64) -> Self;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn high_signed(self, other: Self) -> Self;
    fn high_unsigned(self, other: Self) -> Self;
    fn less_signed(self, other: Self) -> bool;
    fn invert(self) -> Self;
}

macro_rules! word {
    ($word:ty, $signed:ty, $wide:ty, $wide_signed:ty) => {
        impl Word for $word {
            const BITS: u32 = <$word>::BITS;
            #[inline(always)]
            fn signed(self) -> i64 {
                self as $signed as i64
            }
            #[inline(always)]
            fn unsigned(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn from_low(bits: u64) -> Self {
                bits as $word
            }
            #[inline(always)]
            fn add(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            #[inline(always)]
            fn sub(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
            #[inline(always)]
            fn mul(self, other: Self) -> Self {
                self.wrapping_mul(other)
            }
            #[inline(always)]
            fn high_signed(self, other: Self) -> Self {
                ((self as $signed as $wide_signed * other as $signed as $wide_signed) >> <$word>::BITS) as $word
            }
            #[inline(always)]
            fn high_unsigned(self, other: Self) -> Self {
                ((self as $wide * other as $wide) >> <$word>::BITS) as $word
            }
            #[inline(always)]
            fn less_signed(self, other: Self) -> bool {
                (self as $signed) < other as $signed
            }
            #[inline(always)]
            fn invert(self) -> Self {
                !self
            }
        }
    };
}

word!(u16, i16, u32, i32);
word!(u32, i32, u64, i64);
word!(u64, i64, u128, i128);

/// Returns the lanes that divide by zero.
#[inline(always)]
pub fn integer(r: &mut Registers, mask: u32, f: Integer, width: Width, d: Row, [a, b, c]: [Row; 3]) -> u32 {
    match width {
        Width::W16 => of_width::<u16>(r, mask, f, d, [a, b, c]),
        Width::W32 => of_width::<u32>(r, mask, f, d, [a, b, c]),
        Width::W64 => of_width::<u64>(r, mask, f, d, [a, b, c]),
    }
}

#[inline(always)]
fn of_width<T: Word>(r: &mut Registers, mask: u32, f: Integer, d: Row, [a, b, c]: [Row; 3]) -> u32 {
    use Integer::*;
    let x = T::row(r, a);
    let y = if b == NONE { x } else { T::row(r, b) };
    let z = || if c == NONE { x } else { T::row(r, c) };
    let out = match f {
        Add => map2(&x, &y, |x, y| x.add(y)),
        Sub => map2(&x, &y, |x, y| x.sub(y)),
        Mul => map2(&x, &y, |x, y| x.mul(y)),
        MulHighSigned => map2(&x, &y, |x, y| x.high_signed(y)),
        MulHighUnsigned => map2(&x, &y, |x, y| x.high_unsigned(y)),
        Mad => map3(&x, &y, &z(), |x, y, z| x.mul(y).add(z)),
        MadHighSigned => map3(&x, &y, &z(), |x, y, z| x.high_signed(y).add(z)),
        MadHighUnsigned => map3(&x, &y, &z(), |x, y, z| x.high_unsigned(y).add(z)),
        DivSigned | DivUnsigned | RemSigned | RemUnsigned => return divide(r, mask, f, d, &x, &y),
        MinSigned => map2(&x, &y, |x, y| if x.less_signed(y) { x } else { y }),
        MaxSigned => map2(&x, &y, |x, y| if x.less_signed(y) { y } else { x }),
        MinUnsigned => map2(&x, &y, |x, y| x.min(y)),
        MaxUnsigned => map2(&x, &y, |x, y| x.max(y)),
        SadSigned => map3(&x, &y, &z(), |x, y, z| z.add(if x.less_signed(y) { y.sub(x) } else { x.sub(y) })),
        SadUnsigned => map3(&x, &y, &z(), |x, y, z| z.add(x.max(y).sub(x.min(y)))),
        And => map2(&x, &y, |x, y| x & y),
        Or => map2(&x, &y, |x, y| x | y),
        Xor => map2(&x, &y, |x, y| (x | y) & (x & y).invert()),
        Not => map(&x, |x| x.invert()),
        Neg => map(&x, |x| T::default().sub(x)),
        Abs => map(&x, |x| if x.less_signed(T::default()) { T::default().sub(x) } else { x }),
    };
    T::set_row(r, d, mask, out);
    0
}

#[inline(always)]
fn divide<T: Word>(r: &mut Registers, mask: u32, f: Integer, d: Row, x: &Lanes<T>, y: &Lanes<T>) -> u32 {
    let zero = where_true(y, y, |y, _| y == T::default()) & mask;
    if zero != 0 {
        return zero;
    }
    let one = T::from_low(1);
    let out = map2(x, y, |x, y| {
        // Lanes that do not run may hold a zero.
        let y = if y == T::default() { one } else { y };
        T::from_low(match f {
            Integer::DivSigned => x.signed().wrapping_div(y.signed()) as u64,
            Integer::RemSigned => x.signed().wrapping_rem(y.signed()) as u64,
            Integer::DivUnsigned => x.unsigned() / y.unsigned(),
            _ => x.unsigned() % y.unsigned(),
        })
    });
    T::set_row(r, d, mask, out);
    0
}

#[inline(always)]
pub fn wide(r: &mut Registers, mask: u32, signed: bool, narrow: Width, d: Row, [a, b, c]: [Row; 3]) {
    if narrow == Width::W16 {
        let (x, y) = (u16::row(r, a), u16::row(r, b));
        let mut out = match signed {
            true => map2(&x, &y, |x, y| (x as i16 as i32 * y as i16 as i32) as u32),
            false => map2(&x, &y, |x, y| x as u32 * y as u32),
        };
        if c != NONE {
            out = map2(&out, &u32::row(r, c), |x, y| x.wrapping_add(y));
        }
        u32::set_row(r, d, mask, out);
    } else {
        let (x, y) = (u32::row(r, a), u32::row(r, b));
        let mut out = match signed {
            true => map2(&x, &y, |x, y| (x as i32 as i64 * y as i32 as i64) as u64),
            false => map2(&x, &y, |x, y| x as u64 * y as u64),
        };
        if c != NONE {
            out = map2(&out, &u64::row(r, c), |x, y| x.wrapping_add(y));
        }
        u64::set_row(r, d, mask, out);
    }
}

/// Amounts beyond the width are as the width.
#[inline(always)]
pub fn shift(r: &mut Registers, mask: u32, f: Shift, width: Width, d: Row, [a, by]: [Row; 2]) {
    let by = u32::row(r, by);
    macro_rules! shifted {
        ($word:ty, $signed:ty) => {{
            let x = <$word>::row(r, a);
            const LAST: u32 = <$word>::BITS - 1;
            let out = match f {
                Shift::Left => map2(&x, &by, |x, by| if by > LAST { 0 } else { x << (by & LAST) }),
                Shift::RightUnsigned => map2(&x, &by, |x, by| if by > LAST { 0 } else { x >> (by & LAST) }),
                Shift::RightSigned => map2(&x, &by, |x, by| (x as $signed >> by.min(LAST)) as $word),
            };
            <$word>::set_row(r, d, mask, out);
        }};
    }
    match width {
        Width::W16 => shifted!(u16, i16),
        Width::W32 => shifted!(u32, i32),
        Width::W64 => shifted!(u64, i64),
    }
}

/// A sum, difference or product of words with the carry that came in; the carry that goes out.
#[inline(always)]
pub fn carry(r: &mut Registers, mask: u32, op: CarryOp, width: Width, d: Row, from: [Row; 3]) -> u32 {
    match width {
        Width::W64 => carry_of::<u64>(r, mask, op, d, from),
        _ => carry_of::<u32>(r, mask, op, d, from),
    }
}

#[inline(always)]
fn carry_of<T: Word>(r: &mut Registers, mask: u32, op: CarryOp, d: Row, [a, b, c]: [Row; 3]) -> u32 {
    let (x, y) = (T::row(r, a), T::row(r, b));
    let z = if c == NONE { x } else { T::row(r, c) };
    let (mut out, mut carries) = ([T::default(); LANES], 0);
    for lane in 0..LANES {
        let (x, y, z) = (x[lane], y[lane], z[lane]);
        let came = (op.takes && r.carry >> lane & 1 == 1) as u128;
        let (p, q) = match op.f {
            Carry::Add | Carry::Sub => (x, y),
            Carry::MadLow => (x.mul(y), z),
            Carry::MadHigh if op.signed => (x.high_signed(y), z),
            Carry::MadHigh => (x.high_unsigned(y), z),
        };
        let (p, q) = (p.unsigned() as u128, q.unsigned() as u128);
        let sum = if op.f == Carry::Sub { p.wrapping_sub(q).wrapping_sub(came) } else { p + q + came };
        out[lane] = T::from_low(sum as u64);
        carries |= ((sum >> T::BITS & 1) as u32) << lane;
    }
    T::set_row(r, d, mask, out);
    carries
}
