//! Loads, stores and atomics (PTX ISA 9.7.9, 9.7.12).

use super::access::{Placed, Use, Wish};
use super::block::Core;
use super::fault::{Fault, Kind};
use super::op::*;
use super::registers::*;
use super::warp::Warp;
use crate::memory::Bytes;
use crate::ptx::Scalar;

/// Where shared and local memory begin in the generic address space.
pub const SHARED_WINDOW: u64 = 1 << 48;
pub const LOCAL_WINDOW: u64 = 2 << 48;
const WINDOW: u64 = 1 << 32;

#[inline(always)]
pub fn addresses(r: &Registers, address: &Address) -> Lanes<u64> {
    let offset = address.offset as u64;
    match address.base {
        Base::None => [offset; LANES],
        Base::Narrow(row) => map(&u32::row(r, row), |base| base.wrapping_add(offset as u32) as u64),
        Base::Wide(row) => map(&u64::row(r, row), |base| base.wrapping_add(offset)),
    }
}

/// The space of the first lane, and the lanes that lie in it too; addresses become those of the space.
fn generic(addresses: &Lanes<u64>, mask: u32) -> (Where, u32, Lanes<u64>) {
    let space = |address: u64| match address & !(WINDOW - 1) {
        SHARED_WINDOW => (Where::Shared, SHARED_WINDOW),
        LOCAL_WINDOW => (Where::Local, LOCAL_WINDOW),
        _ => (Where::Global, 0),
    };
    let (first, start) = space(addresses[mask.trailing_zeros() as usize]);
    let same = lanes(mask).fold(0, |set, lane| set | (((space(addresses[lane]).0 == first) as u32) << lane));
    (first, same, map(addresses, |address| address.wrapping_sub(start)))
}

impl Core<'_> {
    /// Calls `f` with the bytes of every stretch that the lanes have.
    #[inline(always)]
    fn each(
        &mut self,
        warp: &mut Warp,
        wish: &Wish,
        mask: u32,
        mut f: impl FnMut(&mut Registers, &Bytes, &Placed),
    ) -> Result<(), Fault> {
        let mut left = mask;
        while left != 0 {
            let (placed, space) = if wish.space == Where::Generic {
                let (space, same, addresses) = generic(wish.addresses, left);
                (self.place(warp, &Wish { space, addresses: &addresses, ..*wish }, same)?, space)
            } else {
                (self.place(warp, wish, left)?, wish.space)
            };
            match space {
                Where::Global => f(&mut warp.registers, &self.grid.allocations[placed.index].bytes, &placed),
                Where::Shared => f(&mut warp.registers, &self.shared, &placed),
                _ => f(&mut warp.registers, &warp.local, &placed),
            }
            left &= !placed.mask;
        }
        Ok(())
    }

    #[inline(always)]
    pub fn load(
        &mut self,
        warp: &mut Warp,
        pc: u32,
        mask: u32,
        address: &Address,
        elements: &Elements,
        strong: bool,
    ) -> Result<(), Fault> {
        let program = self.program();
        let rows = elements.rows.of(&program.lists);
        let size = elements.size as usize;
        if address.space == Where::Parameter {
            return self.load_parameter(warp, mask, address.offset as usize, elements, rows);
        }
        let addresses = addresses(&warp.registers, address);
        let each = size * rows.len();
        let wish = Wish { pc, space: address.space, addresses: &addresses, size: each, for_: Use::Load, strong };
        self.each(warp, &wish, mask, |registers, bytes, placed| {
            for (index, row) in rows.iter().enumerate().filter(|(_, row)| **row != NONE) {
                let mut values = [0u64; LANES];
                for (lane, value) in values.iter_mut().enumerate() {
                    // Lanes that do not take part read along at a place that is there.
                    let from = if placed.mask >> lane & 1 == 1 { lane } else { placed.mask.trailing_zeros() as usize };
                    *value = bytes.load(placed.offsets[from] + index * size, elements.size);
                }
                put(registers, *row, placed.mask, elements, &values);
            }
        })
    }

    /// A parameter of the kernel is the same for all.
    fn load_parameter(
        &mut self,
        warp: &mut Warp,
        mask: u32,
        at: usize,
        elements: &Elements,
        rows: &[Row],
    ) -> Result<(), Fault> {
        let size = elements.size as usize;
        for (index, row) in rows.iter().enumerate() {
            let from = at + index * size;
            let Some(bytes) = self.grid.launch.parameters.get(from..from + size) else {
                return Err(Fault::new(Kind::IllegalAddress, format!("reads beyond the parameters, at byte {from}")));
            };
            let mut value = [0; 8];
            value[..size].copy_from_slice(bytes);
            put(&mut warp.registers, *row, mask, elements, &[u64::from_le_bytes(value); LANES]);
        }
        Ok(())
    }

    #[inline(always)]
    pub fn store(
        &mut self,
        warp: &mut Warp,
        pc: u32,
        mask: u32,
        address: &Address,
        elements: &Elements,
        strong: bool,
    ) -> Result<(), Fault> {
        let program = self.program();
        let rows = elements.rows.of(&program.lists);
        let size = elements.size as usize;
        let addresses = addresses(&warp.registers, address);
        let each = size * rows.len();
        let wish = Wish { pc, space: address.space, addresses: &addresses, size: each, for_: Use::Store, strong };
        let reversed = self.checks().reversed_threads;
        self.each(warp, &wish, mask, |registers, bytes, placed| {
            for (index, row) in rows.iter().enumerate() {
                let value = |lane: usize| match elements.wide {
                    true => registers.wide[*row as usize][lane],
                    false => registers.narrow[*row as usize][lane] as u64,
                };
                let store = |lane: usize| bytes.store(placed.offsets[lane] + index * size, elements.size, value(lane));
                if placed.mask == u32::MAX && !reversed {
                    (0..LANES).for_each(store);
                } else {
                    in_order(placed.mask, reversed).for_each(store);
                }
            }
        })
    }

    /// `rows`: the result (or NONE), the operand, and the value to swap in.
    #[allow(clippy::too_many_arguments)]
    pub fn atomic(
        &mut self,
        warp: &mut Warp,
        pc: u32,
        mask: u32,
        f: Atomic,
        of: Scalar,
        address: &Address,
        [d, b, c]: [Row; 3],
    ) -> Result<(), Fault> {
        let addresses = addresses(&warp.registers, address);
        let wide = of.bits() == 64;
        let operand = |r: &Registers, row: Row, lane: usize| match (row, wide) {
            (NONE, _) => 0,
            (_, true) => r.wide[row as usize][lane],
            (_, false) => r.narrow[row as usize][lane] as u64,
        };
        let wish =
            Wish { pc, space: address.space, addresses: &addresses, size: of.bytes(), for_: Use::Update, strong: true };
        let reversed = self.checks().reversed_threads;
        let mut old = [0u64; LANES];
        self.each(warp, &wish, mask, |registers, bytes, placed| {
            for lane in in_order(placed.mask, reversed) {
                let (x, y) = (operand(registers, b, lane), operand(registers, c, lane));
                old[lane] = bytes.update(placed.offsets[lane], of.bytes() as u32, |old| replacement(f, of, old, x, y));
            }
        })?;
        if d != NONE {
            match wide {
                true => u64::set_row(&mut warp.registers, d, mask, old),
                false => u32::set_row(&mut warp.registers, d, mask, map(&old, |x| x as u32)),
            }
        }
        if self.checks().races {
            for lane in lanes(mask) {
                let (block, phase, fenced) = (self.clock.block, self.clock.phase, self.fenced);
                self.releases.atomic(addresses[lane], block, phase, fenced, &mut self.acquired);
            }
        }
        Ok(())
    }
}

fn in_order(mask: u32, reversed: bool) -> impl Iterator<Item = usize> {
    let mask = if reversed { mask.reverse_bits() } else { mask };
    lanes(mask).map(move |lane| if reversed { LANES - 1 - lane } else { lane })
}

#[inline(always)]
fn put(r: &mut Registers, row: Row, mask: u32, elements: &Elements, values: &Lanes<u64>) {
    let Some(register) = elements.extend else {
        return match elements.wide {
            true => u64::set_row(r, row, mask, *values),
            false => u32::set_row(r, row, mask, map(values, |x| x as u32)),
        };
    };
    let above = 64 - 8 * elements.size;
    let extended = map(values, |x| ((x << above) as i64 >> above) as u64);
    match register {
        Width::W64 => u64::set_row(r, row, mask, extended),
        Width::W32 => u32::set_row(r, row, mask, map(&extended, |x| x as u32)),
        Width::W16 => u32::set_row(r, row, mask, map(&extended, |x| x as u16 as u32)),
    }
}

/// What an atomic leaves in memory.
fn replacement(f: Atomic, of: Scalar, old: u64, x: u64, y: u64) -> u64 {
    let float = |f: fn(f32, f32) -> f32| f(f32::from_bits(old as u32), f32::from_bits(x as u32)).to_bits() as u64;
    let less = |a: u64, b: u64| match of {
        Scalar::S32 => (a as i32) < b as i32,
        Scalar::S64 => (a as i64) < b as i64,
        _ => a < b,
    };
    match f {
        Atomic::Add if of == Scalar::F32 => float(|a, b| a + b),
        Atomic::Add if of == Scalar::F64 => (f64::from_bits(old) + f64::from_bits(x)).to_bits(),
        Atomic::Add => old.wrapping_add(x),
        Atomic::Min if less(x, old) => x,
        Atomic::Max if less(old, x) => x,
        Atomic::Min | Atomic::Max => old,
        Atomic::And => old & x,
        Atomic::Or => old | x,
        Atomic::Xor => old ^ x,
        Atomic::Exchange => x,
        Atomic::CompareAndSwap if old == x => y,
        Atomic::CompareAndSwap => old,
        Atomic::Increment => {
            if old >= x {
                0
            } else {
                old + 1
            }
        }
        Atomic::Decrement => {
            if old == 0 || old > x {
                x
            } else {
                old - 1
            }
        }
    }
}
