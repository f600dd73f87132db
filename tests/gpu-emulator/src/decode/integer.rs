//! Opcodes of integers and bits.

use super::opcode::Opcode;
use super::operands::nth;
use super::{Decoder, Result};
use crate::exec::op::*;
use crate::ptx::{Operand, Scalar};

impl Decoder<'_> {
    pub(super) fn integer(&mut self, guard: Guard, opcode: &Opcode, operands: &[Operand]) -> Result<()> {
        let of = opcode.type_()?;
        let op = match opcode.name {
            "and" | "or" | "xor" | "not" if of == Scalar::Pred => self.predicate_logic(opcode, operands)?,
            "addc" | "subc" | "madc" => self.carried(guard, opcode, operands, of)?,
            "add" | "sub" | "mad" if opcode.has("cc") => self.carried(guard, opcode, operands, of)?,
            "mul" | "mad" if opcode.has("wide") => self.widening(guard, opcode, operands, of)?,
            "shl" | "shr" => self.shift(guard, opcode, operands, of)?,
            "popc" | "clz" | "brev" | "bfind" => self.count(guard, opcode, operands, of)?,
            "shf" | "prmt" | "lop3" | "bfe" | "bfi" => self.bit_field(guard, opcode, operands, of)?,
            _ => self.plain(guard, opcode, operands, of)?,
        };
        self.arithmetic(guard, op);
        Ok(())
    }

    fn plain(&mut self, guard: Guard, opcode: &Opcode, operands: &[Operand], of: Scalar) -> Result<Arithmetic> {
        use Integer::*;
        let pick = |signed, unsigned| if of.is_signed() { signed } else { unsigned };
        let high = opcode.has("hi");
        opcode.ignore(&["lo"]);
        let f = match opcode.name {
            "add" => Add,
            "sub" => Sub,
            "mul" if high => pick(MulHighSigned, MulHighUnsigned),
            "mul" => Mul,
            "mad" if high => pick(MadHighSigned, MadHighUnsigned),
            "mad" => Mad,
            "sad" => pick(SadSigned, SadUnsigned),
            "div" => pick(DivSigned, DivUnsigned),
            "rem" => pick(RemSigned, RemUnsigned),
            "min" => pick(MinSigned, MinUnsigned),
            "max" => pick(MaxSigned, MaxUnsigned),
            "and" => And,
            "or" => Or,
            "xor" => Xor,
            "not" => Not,
            "neg" => Neg,
            "abs" => Abs,
            name => return Err(format!("`{name}` is not modelled")),
        };
        let d = self.exact(of, operands, 0)?;
        let a = self.source(guard, of, operands, 1)?;
        let b = if operands.len() > 2 { self.source(guard, of, operands, 2)? } else { NONE };
        let c = if operands.len() > 3 { self.source(guard, of, operands, 3)? } else { NONE };
        Ok(Arithmetic::Integer { f, width: Width::of(of.bits()), d, from: [a, b, c] })
    }

    fn predicate_logic(&mut self, opcode: &Opcode, operands: &[Operand]) -> Result<Arithmetic> {
        let f = match opcode.name {
            "and" => Logic::And,
            "or" => Logic::Or,
            "xor" => Logic::Xor,
            _ => Logic::Not,
        };
        let d = self.predicate(nth(operands, 0)?)?;
        let a = self.predicate(nth(operands, 1)?)?;
        let b = if operands.len() > 2 { self.predicate(&operands[2])? } else { NONE };
        Ok(Arithmetic::Predicate { f, d, a, b })
    }

    fn carried(&mut self, guard: Guard, opcode: &Opcode, operands: &[Operand], of: Scalar) -> Result<Arithmetic> {
        let high = opcode.has("hi");
        opcode.ignore(&["lo"]);
        let f = match opcode.name {
            "add" | "addc" => Carry::Add,
            "sub" | "subc" => Carry::Sub,
            _ if high => Carry::MadHigh,
            _ => Carry::MadLow,
        };
        let d = self.exact(of, operands, 0)?;
        let a = self.source(guard, of, operands, 1)?;
        let b = self.source(guard, of, operands, 2)?;
        let c = if operands.len() > 3 { self.source(guard, of, operands, 3)? } else { NONE };
        let (takes, gives) = (opcode.name.ends_with('c'), opcode.has("cc"));
        let op = CarryOp { f, signed: of.is_signed(), takes, gives };
        Ok(Arithmetic::Carry { op, width: Width::of(of.bits()), d, from: [a, b, c] })
    }

    fn widening(&mut self, guard: Guard, opcode: &Opcode, operands: &[Operand], of: Scalar) -> Result<Arithmetic> {
        let double = match of.bits() {
            16 => Scalar::B32,
            32 => Scalar::B64,
            bits => return Err(format!("of {bits} bits")),
        };
        let d = self.exact(double, operands, 0)?;
        let a = self.source(guard, of, operands, 1)?;
        let b = self.source(guard, of, operands, 2)?;
        let c = if opcode.name == "mad" { self.source(guard, double, operands, 3)? } else { NONE };
        Ok(Arithmetic::Wide { signed: of.is_signed(), narrow: Width::of(of.bits()), d, from: [a, b, c] })
    }

    fn shift(&mut self, guard: Guard, opcode: &Opcode, operands: &[Operand], of: Scalar) -> Result<Arithmetic> {
        let f = match opcode.name {
            "shl" => Shift::Left,
            _ if of.is_signed() => Shift::RightSigned,
            _ => Shift::RightUnsigned,
        };
        let d = self.exact(of, operands, 0)?;
        let a = self.source(guard, of, operands, 1)?;
        let by = self.source(guard, Scalar::U32, operands, 2)?;
        Ok(Arithmetic::Shift { f, width: Width::of(of.bits()), d, from: [a, by] })
    }

    fn count(&mut self, guard: Guard, opcode: &Opcode, operands: &[Operand], of: Scalar) -> Result<Arithmetic> {
        let shift = opcode.has("shiftamt");
        let f = match opcode.name {
            "popc" => Count::Ones,
            "clz" => Count::LeadingZeros,
            "brev" => Count::Reverse,
            _ if of.is_signed() => Count::FindSigned { shift },
            _ => Count::FindUnsigned { shift },
        };
        let result = if f == Count::Reverse { of } else { Scalar::U32 };
        let d = self.exact(result, operands, 0)?;
        let a = self.source(guard, of, operands, 1)?;
        Ok(Arithmetic::Count { f, width: Width::of(of.bits()), d, a })
    }

    fn bit_field(&mut self, guard: Guard, opcode: &Opcode, operands: &[Operand], of: Scalar) -> Result<Arithmetic> {
        let width = Width::of(of.bits());
        let d = self.exact(of, operands, 0)?;
        let a = self.source(guard, of, operands, 1)?;
        if opcode.name == "bfe" {
            let at = self.source(guard, Scalar::U32, operands, 2)?;
            let len = self.source(guard, Scalar::U32, operands, 3)?;
            return Ok(Arithmetic::Extract { signed: of.is_signed(), width, d, from: [a, at, len] });
        }
        let b = self.source(guard, of, operands, 2)?;
        let c = self.source(guard, Scalar::U32, operands, 3)?;
        Ok(match opcode.name {
            "bfi" => {
                let len = self.source(guard, Scalar::U32, operands, 4)?;
                Arithmetic::Insert { width, d, from: [a, b, c, len] }
            }
            "shf" => {
                let (right, wrap) = (opcode.has("r"), opcode.has("wrap"));
                opcode.ignore(&["l", "clamp"]);
                Arithmetic::Funnel { right, wrap, d, from: [a, b, c] }
            }
            "prmt" => {
                let modes = [
                    ("f4e", Permute::Forward4),
                    ("b4e", Permute::Backward4),
                    ("rc8", Permute::Replicate8),
                    ("ecl", Permute::EdgeLeft),
                    ("ecr", Permute::EdgeRight),
                    ("rc16", Permute::Replicate16),
                ];
                Arithmetic::Permute { f: opcode.one_of(&modes).unwrap_or(Permute::Index), d, from: [a, b, c] }
            }
            _ => match nth(operands, 4)? {
                Operand::Immediate(table) => Arithmetic::Lop3 { table: *table as u8, d, from: [a, b, c] },
                other => return Err(format!("{other:?}, expected the table")),
            },
        })
    }
}
