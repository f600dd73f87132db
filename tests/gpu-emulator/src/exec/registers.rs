//! The registers of a warp: rows of 32 lanes.

use super::op::Row;
use super::program::{Program, Special};

pub const LANES: usize = 32;
/// A value of each.
pub type Lanes<T> = [T; LANES];

/// What a register holds before it is written: large and odd as an integer, NaN as a float.
const POISON32: u32 = 0xfff7_dead;
const POISON64: u64 = 0xfff7_dead_fff7_dead;

#[derive(Default)]
pub struct Registers {
    pub narrow: Vec<Lanes<u32>>,
    pub wide: Vec<Lanes<u64>>,
    /// A bit per lane.
    pub predicates: Vec<u32>,
    /// The condition code of `add.cc`, a bit per lane.
    pub carry: u32,
}

/// Where a thread is: the indices and extents that special registers give.
pub struct Place {
    pub warp: u32,
    pub block: [u32; 3],
    pub blocks: [u32; 3],
    pub threads: [u32; 3],
}

impl Place {
    pub fn thread(&self, lane: usize) -> [u32; 3] {
        let index = self.warp * LANES as u32 + lane as u32;
        let [x, y, _] = self.threads;
        [index % x, index / x % y, index / x / y]
    }

    fn special(&self, which: Special, lane: usize) -> u32 {
        let own = 1u32 << lane;
        match which {
            Special::Thread(axis) => self.thread(lane)[axis as usize],
            Special::Threads(axis) => self.threads[axis as usize],
            Special::Block(axis) => self.block[axis as usize],
            Special::Blocks(axis) => self.blocks[axis as usize],
            Special::Lane => lane as u32,
            Special::Warp => self.warp,
            Special::MaskEq => own,
            Special::MaskLt => own - 1,
            Special::MaskLe => own | (own - 1),
            Special::MaskGt => !(own | (own - 1)),
            Special::MaskGe => !(own - 1),
            Special::Zero => 0,
        }
    }
}

impl Registers {
    /// As they are when a warp starts.
    pub fn reset(&mut self, program: &Program, place: &Place) {
        self.narrow.clear();
        self.narrow.resize(program.rows32, [POISON32; LANES]);
        self.wide.clear();
        self.wide.resize(program.rows64, [POISON64; LANES]);
        self.predicates.clear();
        self.predicates.resize(program.predicates, 0);
        self.carry = 0;
        for (row, value) in &program.constants32 {
            self.narrow[*row as usize] = [*value; LANES];
        }
        for (row, value) in &program.constants64 {
            self.wide[*row as usize] = [*value; LANES];
        }
        for (row, which) in &program.specials {
            self.narrow[*row as usize] = std::array::from_fn(|lane| place.special(*which, lane));
        }
    }

    #[inline(always)]
    pub fn set_predicate(&mut self, row: Row, mask: u32, value: u32) {
        let old = &mut self.predicates[row as usize];
        *old = *old & !mask | value & mask;
    }
}

/// A type whose rows are in one of the banks.
pub trait InBank: Copy + Default {
    fn row(registers: &Registers, row: Row) -> Lanes<Self>;
    fn set_row(registers: &mut Registers, row: Row, mask: u32, value: Lanes<Self>);
}

#[inline(always)]
fn merge<T: Copy>(to: &mut Lanes<T>, mask: u32, value: &Lanes<T>) {
    if mask == u32::MAX {
        *to = *value;
    } else {
        for lane in 0..LANES {
            to[lane] = if mask >> lane & 1 == 1 { value[lane] } else { to[lane] };
        }
    }
}

impl InBank for u32 {
    #[inline(always)]
    fn row(registers: &Registers, row: Row) -> Lanes<u32> {
        registers.narrow[row as usize]
    }

    #[inline(always)]
    fn set_row(registers: &mut Registers, row: Row, mask: u32, value: Lanes<u32>) {
        merge(&mut registers.narrow[row as usize], mask, &value);
    }
}

impl InBank for u64 {
    #[inline(always)]
    fn row(registers: &Registers, row: Row) -> Lanes<u64> {
        registers.wide[row as usize]
    }

    #[inline(always)]
    fn set_row(registers: &mut Registers, row: Row, mask: u32, value: Lanes<u64>) {
        merge(&mut registers.wide[row as usize], mask, &value);
    }
}

/// 16-bit values lie zero-extended in the 32-bit bank.
impl InBank for u16 {
    #[inline(always)]
    fn row(registers: &Registers, row: Row) -> Lanes<u16> {
        map(&registers.narrow[row as usize], |x| x as u16)
    }

    #[inline(always)]
    fn set_row(registers: &mut Registers, row: Row, mask: u32, value: Lanes<u16>) {
        merge(&mut registers.narrow[row as usize], mask, &map(&value, u32::from));
    }
}

impl InBank for f32 {
    #[inline(always)]
    fn row(registers: &Registers, row: Row) -> Lanes<f32> {
        map(&registers.narrow[row as usize], f32::from_bits)
    }

    #[inline(always)]
    fn set_row(registers: &mut Registers, row: Row, mask: u32, value: Lanes<f32>) {
        merge(&mut registers.narrow[row as usize], mask, &map(&value, f32::to_bits));
    }
}

impl InBank for f64 {
    #[inline(always)]
    fn row(registers: &Registers, row: Row) -> Lanes<f64> {
        map(&registers.wide[row as usize], f64::from_bits)
    }

    #[inline(always)]
    fn set_row(registers: &mut Registers, row: Row, mask: u32, value: Lanes<f64>) {
        merge(&mut registers.wide[row as usize], mask, &map(&value, f64::to_bits));
    }
}

#[inline(always)]
pub fn map<A: Copy, T: Copy + Default>(a: &Lanes<A>, f: impl Fn(A) -> T) -> Lanes<T> {
    let mut out = [T::default(); LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane]);
    }
    out
}

#[inline(always)]
pub fn map2<A: Copy, B: Copy, T: Copy + Default>(a: &Lanes<A>, b: &Lanes<B>, f: impl Fn(A, B) -> T) -> Lanes<T> {
    let mut out = [T::default(); LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane], b[lane]);
    }
    out
}

#[inline(always)]
pub fn map3<A: Copy, B: Copy, C: Copy, T: Copy + Default>(
    a: &Lanes<A>,
    b: &Lanes<B>,
    c: &Lanes<C>,
    f: impl Fn(A, B, C) -> T,
) -> Lanes<T> {
    let mut out = [T::default(); LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane], b[lane], c[lane]);
    }
    out
}

/// A bit per lane where `f` holds.
#[inline(always)]
pub fn where_true<A: Copy, B: Copy>(a: &Lanes<A>, b: &Lanes<B>, f: impl Fn(A, B) -> bool) -> u32 {
    let mut mask = 0;
    for lane in 0..LANES {
        mask |= (f(a[lane], b[lane]) as u32) << lane;
    }
    mask
}

/// The lanes of a mask, in order or reversed.
#[inline(always)]
pub fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let lane = left.trailing_zeros() as usize;
        left &= left.wrapping_sub(1);
        (lane < LANES).then_some(lane)
    })
}
