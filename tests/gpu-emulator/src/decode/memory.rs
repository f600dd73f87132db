//! Opcodes of memory.

use super::opcode::Opcode;
use super::operands::nth;
use super::{Decoder, Result};
use crate::exec::op::*;
use crate::ptx::{Operand, Scalar, Space};

/// Hints to caches, and scopes: nothing here is cached, and all threads are on one device.
const HINTS: &[&str] = &[
    "ca",
    "cg",
    "cs",
    "lu",
    "cv",
    "wb",
    "wt",
    "nc",
    "L1::evict_normal",
    "L1::evict_unchanged",
    "L1::evict_first",
    "L1::evict_last",
    "L1::no_allocate",
    "L2::64B",
    "L2::128B",
    "L2::256B",
    "cta",
    "gpu",
    "sys",
    "weak",
    "sc",
    "acq_rel",
    "release",
    "acquire",
    "relaxed",
];

impl Decoder<'_> {
    pub(super) fn memory(&mut self, guard: Guard, opcode: &Opcode, operands: &[Operand]) -> Result<()> {
        let strong = ["relaxed", "acquire", "release", "volatile"].iter().any(|word| opcode.has(word));
        opcode.ignore(HINTS);
        let op = match opcode.name {
            "ld" | "ldu" => self.load(opcode, operands, strong)?,
            "st" => self.store(guard, opcode, operands, strong)?,
            "atom" | "red" => self.atomic(guard, opcode, operands)?,
            "cp" => self.copy(guard, opcode, operands)?,
            "prefetch" => {
                opcode.ignore(&["global", "L1", "L2"]);
                return Ok(());
            }
            _ => {
                opcode.ignore(&["gl", "proxy", "async"]);
                Op::Fence
            }
        };
        self.emit(guard, op);
        Ok(())
    }

    /// Races are looked for in grains of the smallest access.
    fn note_grain(&mut self, address: &Address, size: usize) {
        let size = size as u32;
        if !matches!(address.space, Where::Shared | Where::Local) {
            self.program.grain_global = self.program.grain_global.min(size);
        }
        if matches!(address.space, Where::Shared | Where::Generic) {
            self.program.grain_shared = self.program.grain_shared.min(size);
        }
    }

    fn vector(opcode: &Opcode) -> usize {
        opcode.one_of(&[("v2", 2), ("v4", 4)]).unwrap_or(1)
    }

    fn load(&mut self, opcode: &Opcode, operands: &[Operand], strong: bool) -> Result<Op> {
        let of = opcode.type_()?;
        let address = self.address(opcode.space(), nth(operands, 1)?)?;
        let (rows, width) = self.targets(of, nth(operands, 0)?)?;
        if rows.len() != Self::vector(opcode) {
            return Err("the vector has another length".into());
        }
        if address.space != Where::Parameter {
            self.note_grain(&address, of.bytes());
        }
        let extend = of.is_signed().then_some(width);
        let elements = Elements { size: of.bytes() as u32, rows: self.list(&rows), wide: width == Width::W64, extend };
        Ok(Op::Load { address, elements, strong })
    }

    fn store(&mut self, guard: Guard, opcode: &Opcode, operands: &[Operand], strong: bool) -> Result<Op> {
        let of = opcode.type_()?;
        let address = self.address(opcode.space(), nth(operands, 0)?)?;
        let rows = self.sources(guard, of, nth(operands, 1)?)?;
        if rows.len() != Self::vector(opcode) {
            return Err("the vector has another length".into());
        }
        if address.space == Where::Parameter {
            return Err("the parameters of a kernel cannot be written".into());
        }
        self.note_grain(&address, of.bytes());
        let (size, wide) = (of.bytes() as u32, of.bits() == 64);
        let elements = Elements { size, rows: self.list(&rows), wide, extend: None };
        Ok(Op::Store { address, elements, strong })
    }

    fn atomic(&mut self, guard: Guard, opcode: &Opcode, operands: &[Operand]) -> Result<Op> {
        let of = opcode.type_()?;
        let names = [
            ("add", Atomic::Add),
            ("min", Atomic::Min),
            ("max", Atomic::Max),
            ("and", Atomic::And),
            ("or", Atomic::Or),
            ("xor", Atomic::Xor),
            ("exch", Atomic::Exchange),
            ("cas", Atomic::CompareAndSwap),
            ("inc", Atomic::Increment),
            ("dec", Atomic::Decrement),
        ];
        let f = opcode.one_of(&names).ok_or("no operation")?;
        if !matches!(of.bits(), 32 | 64) || matches!(of, Scalar::F16x2 | Scalar::Bf16x2) {
            return Err("atomics of this type are not modelled".into());
        }
        let first = (opcode.name == "atom") as usize;
        let d = match first {
            1 => self.exact(of, operands, 0)?,
            _ => NONE,
        };
        let address = self.address(opcode.space(), nth(operands, first)?)?;
        self.note_grain(&address, of.bytes());
        let b = self.source(guard, of, operands, first + 1)?;
        let c = if operands.len() > first + 2 { self.source(guard, of, operands, first + 2)? } else { NONE };
        Ok(Op::Atomic { f, of, address, rows: [d, b, c] })
    }

    fn copy(&mut self, guard: Guard, opcode: &Opcode, operands: &[Operand]) -> Result<Op> {
        if !opcode.has("async") {
            return Err("it is not modelled".into());
        }
        if opcode.has("commit_group") {
            return Ok(Op::CopyCommit);
        }
        if opcode.has("wait_all") {
            return Ok(Op::CopyWait { keep: u32::MAX });
        }
        let number = |index| match nth(operands, index)? {
            Operand::Immediate(value) => Ok(*value as u32),
            other => Err(format!("{other:?}, expected a number")),
        };
        if opcode.has("wait_group") {
            return Ok(Op::CopyWait { keep: number(0)? });
        }
        opcode.ignore(&["shared", "shared::cta", "global"]);
        let to = self.address(Space::Shared, nth(operands, 0)?)?;
        let from = self.address(Space::Global, nth(operands, 1)?)?;
        let size = number(2)?;
        if !matches!(size, 4 | 8 | 16) {
            return Err(format!("{size} bytes, expected 4, 8 or 16"));
        }
        let from_size = if operands.len() > 3 { self.source(guard, Scalar::U32, operands, 3)? } else { NONE };
        Ok(Op::CopyAsync { to, from, size, from_size })
    }
}
