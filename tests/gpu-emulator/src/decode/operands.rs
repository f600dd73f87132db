//! Operands become rows and addresses.

use super::{Binding, Decoder, Result};
use crate::exec::op::*;
use crate::exec::program::Special;
use crate::ptx::{Operand, Scalar, Space};

/// An operand of an instruction that has to have it.
pub fn nth(operands: &[Operand], index: usize) -> Result<&Operand> {
    operands.get(index).ok_or_else(|| format!("operand {} is missing", index + 1))
}

impl Decoder<'_> {
    pub(super) fn find(&self, name: &str) -> Option<Binding> {
        self.scopes.iter().rev().find_map(|scope| scope.get(name)).copied()
    }

    /// A name; shared variables of the module get their place when a kernel first names them.
    fn lookup(&mut self, name: &str) -> Result<Binding> {
        if let Some(binding) = self.find(name) {
            return Ok(binding);
        }
        let module = self.module;
        let variable = module.variables.iter().find(|v| v.name == name && v.space == Space::Shared);
        let variable = variable.ok_or_else(|| format!("`{name}` is not known"))?;
        let binding = self.shared_variable(variable);
        self.scopes[0].insert(name.to_string(), binding);
        Ok(binding)
    }

    pub(super) fn constant32(&mut self, value: u32) -> Row {
        if let Some(row) = self.constants32.get(&value) {
            return *row;
        }
        let row = self.narrow_row();
        self.program.constants32.push((row, value));
        self.constants32.insert(value, row);
        row
    }

    pub(super) fn constant64(&mut self, value: u64) -> Row {
        if let Some(row) = self.constants64.get(&value) {
            return *row;
        }
        let row = self.wide_row();
        self.program.constants64.push((row, value));
        self.constants64.insert(value, row);
        row
    }

    fn special(&mut self, name: &str) -> Option<Row> {
        if let Some(row) = self.specials.get(name) {
            return Some(*row);
        }
        let axis = match name.split_once('.').map_or("", |(_, axis)| axis) {
            "x" => 0,
            "y" => 1,
            _ => 2,
        };
        let which = match name.split('.').next()? {
            "%tid" => Special::Thread(axis),
            "%ntid" => Special::Threads(axis),
            "%ctaid" => Special::Block(axis),
            "%nctaid" => Special::Blocks(axis),
            "%laneid" => Special::Lane,
            "%warpid" => Special::Warp,
            "%lanemask_eq" => Special::MaskEq,
            "%lanemask_lt" => Special::MaskLt,
            "%lanemask_le" => Special::MaskLe,
            "%lanemask_gt" => Special::MaskGt,
            "%lanemask_ge" => Special::MaskGe,
            "%smid" | "%clock" | "%clock64" | "%globaltimer" => Special::Zero,
            _ => return None,
        };
        let row = self.narrow_row();
        self.program.specials.push((row, which));
        self.specials.insert(name.to_string(), row);
        Some(row)
    }

    /// The row with the address of a shared variable.
    fn shared_address(&mut self, index: usize) -> Row {
        let variable = &self.program.shared[index];
        if variable.bytes.is_some() {
            let start = variable.start as u32;
            return self.constant32(start);
        }
        if let Some(row) = self.dynamic {
            return row;
        }
        let row = self.narrow_row();
        self.program.constants32.push((row, 0));
        self.dynamic = Some(row);
        row
    }

    /// A row of the 32-bit bank.
    pub(super) fn narrow(&mut self, guard: Guard, operand: &Operand) -> Result<Row> {
        match operand {
            Operand::Immediate(bits) => Ok(self.constant32(*bits as u32)),
            Operand::Name(name) => {
                if let Some(row) = self.special(name) {
                    return Ok(row);
                }
                match self.lookup(name)? {
                    Binding::Narrow(row, _) => Ok(row),
                    Binding::Wide(a) => {
                        let d = self.narrow_row();
                        self.arithmetic(guard, Arithmetic::Low { d, a });
                        Ok(d)
                    }
                    Binding::Shared(index) => Ok(self.shared_address(index)),
                    Binding::Local(start) => Ok(self.constant32(start as u32)),
                    _ => Err(format!("`{name}` has not 32 bits")),
                }
            }
            _ => Err(format!("{operand:?}, expected a register or a constant")),
        }
    }

    pub(super) fn wide(&mut self, guard: Guard, operand: &Operand) -> Result<Row> {
        match operand {
            Operand::Immediate(bits) => Ok(self.constant64(*bits)),
            Operand::Name(name) => {
                if let Some(a) = self.special(name) {
                    return Ok(self.extended(guard, a));
                }
                match self.lookup(name)? {
                    Binding::Wide(row) => Ok(row),
                    Binding::Narrow(a, _) => Ok(self.extended(guard, a)),
                    Binding::Shared(index) => {
                        let a = self.shared_address(index);
                        Ok(self.extended(guard, a))
                    }
                    Binding::Local(address) | Binding::Global(address) => Ok(self.constant64(address)),
                    _ => Err(format!("`{name}` has not 64 bits")),
                }
            }
            _ => Err(format!("{operand:?}, expected a register or a constant")),
        }
    }

    fn extended(&mut self, guard: Guard, a: Row) -> Row {
        let d = self.wide_row();
        self.arithmetic(guard, Arithmetic::Extend { d, a });
        d
    }

    /// A row of the bank of the type; constants are cut to its width.
    pub(super) fn source(&mut self, guard: Guard, of: Scalar, operands: &[Operand], index: usize) -> Result<Row> {
        let operand = nth(operands, index)?;
        match (of.bits(), operand) {
            (64, _) => self.wide(guard, operand),
            (1, _) => self.predicate(operand),
            (16, Operand::Immediate(bits)) => Ok(self.constant32(*bits as u16 as u32)),
            _ => self.narrow(guard, operand),
        }
    }

    pub(super) fn predicate_named(&mut self, name: &str) -> Result<Row> {
        match self.lookup(name)? {
            Binding::Predicate(row) => Ok(row),
            _ => Err(format!("`{name}` is no predicate")),
        }
    }

    pub(super) fn predicate(&mut self, operand: &Operand) -> Result<Row> {
        match operand {
            Operand::Name(name) => self.predicate_named(name),
            Operand::Immediate(value) => {
                // 0 or 1: made by the comparison of zero with itself.
                let (p, zero) = (self.predicate_row(), self.constant32(0));
                let f = if *value == 0 { Compare::Ne } else { Compare::Eq };
                let test = Test { f, of: Scalar::U32, flush: false, a: zero, b: zero, combine: None };
                self.arithmetic(Guard::Always, Arithmetic::SetPredicate { test, p, q: NONE });
                Ok(p)
            }
            _ => Err(format!("{operand:?}, expected a predicate")),
        }
    }

    /// The row that takes a result of this type. A register that is wider than it needs the width to extend to.
    pub(super) fn target(&mut self, of: Scalar, operand: &Operand) -> Result<(Row, Width)> {
        let name = match operand {
            Operand::Name(name) => name,
            Operand::Sink => {
                return Ok(match of.bits() {
                    1 => (NONE, Width::W32),
                    64 => (self.wide_row(), Width::W64),
                    bits => (self.narrow_row(), Width::of(bits)),
                });
            }
            _ => return Err(format!("{operand:?}, expected a register")),
        };
        let fits = |width: u32| of.bits() <= width && of.bits() > 1;
        match self.lookup(name)? {
            Binding::Predicate(row) if of == Scalar::Pred => Ok((row, Width::W32)),
            Binding::Narrow(row, Width::W16) if fits(16) => Ok((row, Width::W16)),
            Binding::Narrow(row, Width::W32) if fits(32) => Ok((row, Width::W32)),
            Binding::Wide(row) if fits(64) => Ok((row, Width::W64)),
            _ => Err(format!("`{name}` cannot hold a value of {} bits", of.bits())),
        }
    }

    /// A target whose width is that of the type.
    pub(super) fn exact(&mut self, of: Scalar, operands: &[Operand], index: usize) -> Result<Row> {
        let operand = nth(operands, index)?;
        let (row, width) = self.target(of, operand)?;
        if of != Scalar::Pred && width != Width::of(of.bits()) {
            return Err(format!("{operand:?} has another width than the instruction"));
        }
        Ok(row)
    }

    pub(super) fn address(&mut self, space: Space, operand: &Operand) -> Result<Address> {
        let Operand::Address { base, offset } = operand else {
            return Err(format!("{operand:?}, expected an address"));
        };
        let mut space = match space {
            Space::Generic => Where::Generic,
            Space::Global | Space::Const => Where::Global,
            Space::Shared => Where::Shared,
            Space::Local => Where::Local,
            Space::Param => Where::Parameter,
        };
        let mut offset = *offset;
        let base = match base {
            None => Base::None,
            Some(name) => match self.lookup(name)? {
                Binding::Narrow(row, _) => Base::Narrow(row),
                Binding::Wide(row) => Base::Wide(row),
                Binding::Shared(index) => Base::Narrow(self.shared_address(index)),
                Binding::Global(start) => {
                    offset = offset.wrapping_add(start as i64);
                    Base::None
                }
                Binding::Local(start) => {
                    offset += start as i64;
                    if space == Where::Parameter {
                        space = Where::Local;
                    }
                    Base::None
                }
                Binding::Parameter(start) => {
                    offset += start as i64;
                    Base::None
                }
                Binding::Predicate(_) => return Err(format!("`{name}` is a predicate, expected an address")),
            },
        };
        if space == Where::Parameter && (base != Base::None || offset < 0) {
            return Err("parameters are read by name only".into());
        }
        Ok(Address { space, base, offset })
    }

    /// The rows of a vector, or the one of a register; `_` gives NONE.
    pub(super) fn targets(&mut self, of: Scalar, operand: &Operand) -> Result<(Vec<Row>, Width)> {
        let list = match operand {
            Operand::Vector(list) => list.as_slice(),
            _ => std::slice::from_ref(operand),
        };
        let mut rows = Vec::new();
        let mut width = None;
        for operand in list {
            if *operand == Operand::Sink {
                rows.push(NONE);
                continue;
            }
            let (row, own) = self.target(of, operand)?;
            if width.is_some_and(|width| width != own) {
                return Err("registers of different widths in a vector".into());
            }
            width = Some(own);
            rows.push(row);
        }
        Ok((rows, width.unwrap_or(Width::of(of.bits()))))
    }

    /// The rows of the sources of a vector.
    pub(super) fn sources(&mut self, guard: Guard, of: Scalar, operand: &Operand) -> Result<Vec<Row>> {
        match operand {
            Operand::Vector(list) => (0..list.len()).map(|index| self.source(guard, of, list, index)).collect(),
            _ => Ok(vec![self.source(guard, of, std::slice::from_ref(operand), 0)?]),
        }
    }
}
