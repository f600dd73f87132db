//! Calls: the body of the function is put in place of the call. Its parameters are where the caller has put the
//! arguments, in local memory; recursion is refused.

use std::collections::HashMap;

use super::opcode::Opcode;
use super::{Binding, Decoder, Frame, Result};
use crate::exec::op::{Guard, Op};
use crate::ptx::{Operand, Variable};

impl Decoder<'_> {
    /// `call (result), function, (argument, ...)`
    pub(super) fn call(&mut self, guard: Guard, opcode: &Opcode, operands: &[Operand]) -> Result<()> {
        opcode.ignore(&["uni"]);
        let (results, rest) = match operands {
            [Operand::List(results), rest @ ..] => (results.as_slice(), rest),
            rest => (&[][..], rest),
        };
        let (name, arguments) = match rest {
            [Operand::Name(name), Operand::List(arguments)] => (name, arguments.as_slice()),
            [Operand::Name(name)] => (name, &[][..]),
            _ => return Err("calls by address are not modelled".into()),
        };
        let module = self.module;
        let function = module.functions.iter().find(|function| function.name == *name && !function.entry);
        let function = function.ok_or_else(|| format!("function `{name}` is not modelled"))?;
        if self.callers.contains(name) {
            return Err(format!("`{name}` calls itself, which is not modelled"));
        }
        let mut scope = HashMap::new();
        self.bind_arguments(&mut scope, &function.returns, results)?;
        self.bind_arguments(&mut scope, &function.parameters, arguments)?;

        let skip = self.program.code.len();
        if guard != Guard::Always {
            // Patched below: lanes that do not call go past it.
            self.emit(inverse(guard), Op::Branch { to: u32::MAX });
        }
        let line = self.line;
        let outer: Vec<_> = self.scopes.drain(1..).collect();
        self.scopes.push(scope);
        self.callers.push(name.clone());
        self.frames.push(Frame { called: true, ..Frame::default() });
        self.body(function).map_err(|what| format!("in `{name}`: {what}"))?;
        let frame = self.frames.pop().unwrap_or_default();
        self.callers.pop();
        self.scopes.truncate(1);
        self.scopes.extend(outer);
        self.line = line;

        let end = self.program.code.len() as u32;
        for at in frame.returns {
            self.program.code[at].op = Op::Branch { to: end };
        }
        if guard != Guard::Always {
            self.program.code[skip].op = Op::Branch { to: end };
        }
        Ok(())
    }

    fn bind_arguments(
        &self,
        scope: &mut HashMap<String, Binding>,
        parameters: &[Variable],
        given: &[Operand],
    ) -> Result<()> {
        if parameters.len() != given.len() {
            return Err(format!("{} arguments, expected {}", given.len(), parameters.len()));
        }
        for (parameter, operand) in parameters.iter().zip(given) {
            let Operand::Name(name) = operand else { return Err(format!("{operand:?}, expected an argument")) };
            match self.find(name) {
                Some(binding @ Binding::Local(_)) => scope.insert(parameter.name.clone(), binding),
                _ => return Err(format!("`{name}` is no argument of a call")),
            };
        }
        Ok(())
    }
}

fn inverse(guard: Guard) -> Guard {
    match guard {
        Guard::If(p) => Guard::Unless(p),
        Guard::Unless(p) => Guard::If(p),
        Guard::Always => Guard::Always,
    }
}
