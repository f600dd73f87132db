//! From the syntax tree to a [`Program`]: names become rows and addresses, opcodes what the interpreter does, called
//! functions are put in place of their calls. What is not modelled is refused here, so that it is known when a module
//! is loaded and not when the instruction runs.

mod call;
mod control;
mod convert;
mod float;
mod integer;
mod memory;
mod opcode;
mod operands;

use std::collections::HashMap;

use crate::exec::op::*;
use crate::exec::program::{Program, SharedVariable};
use crate::ptx::{Function, Instruction, Module, Scalar, Space, Statement, Variable};
use opcode::Opcode;

pub type Result<T> = std::result::Result<T, String>;

/// What a name stands for.
#[derive(Debug, Clone, Copy)]
enum Binding {
    /// A register of 16 or 32 bits.
    Narrow(Row, Width),
    Wide(Row),
    Predicate(Row),
    /// Index into [`Program::shared`].
    Shared(usize),
    Local(u64),
    Global(u64),
    /// Offset in the parameters of the kernel.
    Parameter(usize),
}

/// A function that is being decoded: its labels, and the branches that wait for them.
#[derive(Default)]
struct Frame {
    labels: HashMap<String, u32>,
    branches: Vec<(usize, String)>,
    /// `ret` in a called function goes to its end.
    returns: Vec<usize>,
    called: bool,
}

struct Decoder<'a> {
    module: &'a Module,
    program: Program,
    /// Innermost last.
    scopes: Vec<HashMap<String, Binding>>,
    frames: Vec<Frame>,
    /// Functions on the way to here, to find recursion.
    callers: Vec<String>,
    line: u32,
    constants32: HashMap<u32, Row>,
    constants64: HashMap<u64, Row>,
    /// The row with the address of the dynamic shared memory, which is known at the end.
    dynamic: Option<Row>,
    specials: HashMap<String, Row>,
}

/// The kernel `function`; `globals` are the addresses of the module's variables in global and constant memory.
pub fn kernel(module: &Module, function: &Function, globals: &HashMap<String, u64>) -> Result<Program> {
    let mut decoder = Decoder {
        module,
        program: Program { name: function.name.clone(), ..Program::default() },
        scopes: vec![globals.iter().map(|(name, address)| (name.clone(), Binding::Global(*address))).collect()],
        frames: vec![Frame::default()],
        callers: vec![function.name.clone()],
        line: 0,
        constants32: HashMap::new(),
        constants64: HashMap::new(),
        dynamic: None,
        specials: HashMap::new(),
    };
    let decoded = decoder.entry(function);
    decoded.map_err(|what| format!("kernel `{}`, line {}: {what}", function.name, decoder.line))?;
    Ok(decoder.program)
}

impl Decoder<'_> {
    fn entry(&mut self, function: &Function) -> Result<()> {
        self.program.max_threads = function.max_threads.unwrap_or(1024);
        self.program.grain_global = 4;
        self.program.grain_shared = 4;
        let mut offset = 0usize;
        for parameter in &function.parameters {
            offset = offset.next_multiple_of(parameter.align);
            self.bind(&parameter.name, Binding::Parameter(offset));
            self.program.parameters.push((parameter.clone(), offset));
            offset += parameter.bytes.ok_or("a parameter without a size")?;
        }
        self.body(function)?;
        self.emit(Guard::Always, Op::Exit);
        self.place_dynamic_shared();
        Ok(())
    }

    /// The statements of a function; its labels are known at the end.
    fn body(&mut self, function: &Function) -> Result<()> {
        self.scopes.push(HashMap::new());
        for (line, statement) in &function.body {
            self.line = *line;
            self.statement(statement)?;
        }
        self.scopes.pop();
        let frame = self.frames.last().ok_or("no function")?;
        for (at, label) in &frame.branches {
            let to = *frame.labels.get(label).ok_or_else(|| format!("no label `{label}`"))?;
            self.program.code[*at].op = Op::Branch { to };
        }
        Ok(())
    }

    fn statement(&mut self, statement: &Statement) -> Result<()> {
        match statement {
            Statement::Open => self.scopes.push(HashMap::new()),
            Statement::Close => drop(self.scopes.pop()),
            Statement::Label(name) => {
                let here = self.program.code.len() as u32;
                let labels = self.frames.last_mut().map(|frame| &mut frame.labels);
                if labels.and_then(|labels| labels.insert(name.clone(), here)).is_some() {
                    return Err(format!("label `{name}` is there twice"));
                }
            }
            Statement::Registers { scalar, name, count: None } => self.register(name, *scalar),
            Statement::Registers { scalar, name, count: Some(count) } => {
                (0..*count).for_each(|index| self.register(&format!("{name}{index}"), *scalar));
            }
            Statement::Variable(variable) => self.variable(variable)?,
            Statement::Instruction(instruction) => self.instruction(instruction)?,
        }
        Ok(())
    }

    fn bind(&mut self, name: &str, binding: Binding) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name.to_string(), binding);
        }
    }

    fn register(&mut self, name: &str, scalar: Scalar) {
        let binding = match scalar.bits() {
            1 => Binding::Predicate(self.predicate_row()),
            64 => Binding::Wide(self.wide_row()),
            bits => Binding::Narrow(self.narrow_row(), Width::of(bits)),
        };
        self.bind(name, binding);
    }

    fn narrow_row(&mut self) -> Row {
        self.program.rows32 += 1;
        self.program.rows32 as Row - 1
    }

    fn wide_row(&mut self) -> Row {
        self.program.rows64 += 1;
        self.program.rows64 as Row - 1
    }

    fn predicate_row(&mut self) -> Row {
        self.program.predicates += 1;
        self.program.predicates as Row - 1
    }

    fn variable(&mut self, variable: &Variable) -> Result<()> {
        let bytes = variable.bytes.ok_or_else(|| format!("`{}` has no size", variable.name))?;
        let binding = match variable.space {
            Space::Shared => self.shared_variable(variable),
            // `.param` in a body is where arguments of a call are put.
            Space::Local | Space::Param => {
                let start = self.program.local_bytes.next_multiple_of(variable.align);
                self.program.local_bytes = start + bytes;
                Binding::Local(start as u64)
            }
            _ => return Err(format!("`{}`: this space has no variables in functions", variable.name)),
        };
        self.bind(&variable.name, binding);
        Ok(())
    }

    fn shared_variable(&mut self, variable: &Variable) -> Binding {
        let start = match variable.bytes {
            Some(bytes) => {
                let start = self.program.shared_bytes.next_multiple_of(variable.align);
                self.program.shared_bytes = start + bytes;
                start as u64
            }
            // Known when the static ones are.
            None => u64::MAX,
        };
        let bytes = variable.bytes.map(|bytes| bytes as u64);
        self.program.shared.push(SharedVariable { name: variable.name.clone(), start, bytes });
        Binding::Shared(self.program.shared.len() - 1)
    }

    /// Dynamic shared memory follows the static one.
    fn place_dynamic_shared(&mut self) {
        let start = self.program.shared_bytes.next_multiple_of(16);
        if self.dynamic.is_some() {
            self.program.shared_bytes = start;
        }
        for variable in self.program.shared.iter_mut().filter(|variable| variable.bytes.is_none()) {
            variable.start = start as u64;
        }
        for (row, value) in &mut self.program.constants32 {
            if Some(*row) == self.dynamic {
                *value = start as u32;
            }
        }
        self.program.shared.sort_by_key(|variable| variable.start);
    }

    fn emit(&mut self, guard: Guard, op: Op) {
        self.program.code.push(Inst { guard, op });
        self.program.lines.push(self.line);
    }

    fn arithmetic(&mut self, guard: Guard, op: Arithmetic) {
        self.emit(guard, Op::Arithmetic(op));
    }

    fn list(&mut self, rows: &[Row]) -> List {
        let start = self.program.lists.len() as u32;
        self.program.lists.extend_from_slice(rows);
        List { start, len: rows.len() as u32 }
    }

    fn instruction(&mut self, instruction: &Instruction) -> Result<()> {
        let opcode = Opcode::new(&instruction.opcode);
        let operands = &instruction.operands;
        let guard = match &instruction.guard {
            None => Guard::Always,
            Some((name, false)) => Guard::If(self.predicate_named(name)?),
            Some((name, true)) => Guard::Unless(self.predicate_named(name)?),
        };
        let decoded = match opcode.name {
            "add" | "sub" | "mul" | "mad" | "div" | "rem" | "min" | "max" | "neg" | "abs" | "fma" | "copysign"
            | "ex2" | "lg2" | "rsqrt" | "sqrt" | "rcp" | "sin" | "cos" | "tanh"
                if opcode.types.first().is_some_and(|of| of.is_float()) =>
            {
                self.float(guard, &opcode, operands)
            }
            "add" | "sub" | "mul" | "mad" | "mul24" | "mad24" | "sad" | "div" | "rem" | "min" | "max" | "neg"
            | "abs" | "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "shf" | "popc" | "clz" | "brev"
            | "bfind" | "bfe" | "bfi" | "prmt" | "lop3" | "addc" | "subc" | "madc" => {
                self.integer(guard, &opcode, operands)
            }
            "mov" | "cvt" | "cvta" | "setp" | "set" | "selp" => self.convert(guard, &opcode, operands),
            "ld" | "ldu" | "st" | "atom" | "red" | "cp" | "prefetch" | "membar" | "fence" => {
                self.memory(guard, &opcode, operands)
            }
            "call" => self.call(guard, &opcode, operands),
            _ => self.control(guard, &opcode, operands),
        };
        let written = || instruction.opcode.join(".");
        decoded.map_err(|what| format!("`{}`: {what}", written()))?;
        match opcode.unused() {
            Some(modifier) => Err(format!("`{}`: `.{modifier}` is not modelled", written())),
            None => Ok(()),
        }
    }
}
