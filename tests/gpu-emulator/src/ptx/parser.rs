//! From tokens to a module. Directives for debuggers and tuning are read over.

use super::lexer::{Lexer, Token, number};
use super::*;

/// What is wrong, with the line.
pub type Result<T> = std::result::Result<T, String>;

struct Parser<'a> {
    tokens: Vec<(u32, Token<'a>)>,
    at: usize,
}

/// The module in `source`, without the zero that ends it.
pub fn parse(source: &str) -> Result<Module> {
    let mut parser = Parser { tokens: Lexer::new(source).collect(), at: 0 };
    parser.module().map_err(|what| format!("line {}: {what}", parser.line()))
}

impl<'a> Parser<'a> {
    fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |t| t.0)
    }

    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).map(|t| t.1)
    }

    fn next(&mut self) -> Result<Token<'a>> {
        let token = self.peek().ok_or("the text ends too early")?;
        self.at += 1;
        Ok(token)
    }

    fn take(&mut self, sign: char) -> bool {
        let found = self.peek() == Some(Token::Sign(sign));
        self.at += found as usize;
        found
    }

    fn expect(&mut self, sign: char) -> Result<()> {
        if self.take(sign) { Ok(()) } else { Err(format!("{:?}, expected `{sign}`", self.peek())) }
    }

    fn word(&mut self) -> Result<&'a str> {
        match self.next()? {
            Token::Word(word) => Ok(word),
            other => Err(format!("{other:?}, expected a name")),
        }
    }

    fn number(&mut self) -> Result<u64> {
        let negative = self.take('-');
        match self.next()? {
            Token::Number(text) => {
                let bits = number(text).ok_or_else(|| format!("`{text}` is no number"))?;
                Ok(if negative { bits.wrapping_neg() } else { bits })
            }
            other => Err(format!("{other:?}, expected a number")),
        }
    }

    fn skip_to(&mut self, sign: char) -> Result<()> {
        while self.next()? != Token::Sign(sign) {}
        Ok(())
    }

    /// What is left of the line of the token before.
    fn skip_line(&mut self) {
        let line = self.tokens[self.at - 1].0;
        while self.tokens.get(self.at).is_some_and(|t| t.0 == line) {
            self.at += 1;
        }
    }

    fn module(&mut self) -> Result<Module> {
        let mut module = Module::default();
        let mut external = false;
        while self.peek().is_some() {
            match self.word()? {
                ".version" => {
                    let Token::Number(text) = self.next()? else { return Err("no version".into()) };
                    let (major, minor) = text.split_once('.').ok_or("the version has no point")?;
                    let part = |text: &str| text.parse::<u32>().map_err(|_| format!("version `{text}`"));
                    module.version = part(major)? * 10 + part(minor)?;
                }
                ".target" => {
                    let word = self.word()?;
                    let digits = word.trim_start_matches("sm_").trim_end_matches(char::is_alphabetic);
                    module.target = digits.parse().map_err(|_| format!("target `{word}`"))?;
                    self.skip_line();
                }
                ".address_size" => {
                    if self.number()? != 64 {
                        return Err("addresses have to be of 64 bits".into());
                    }
                }
                ".extern" => external = true,
                ".visible" | ".weak" | ".common" => {}
                ".file" => self.skip_line(),
                ".section" => self.skip_block()?,
                word @ (".entry" | ".func") => {
                    if let Some(function) = self.function(word == ".entry")? {
                        module.functions.push(function);
                    }
                    external = false;
                }
                word => {
                    let space = word.strip_prefix('.').and_then(Space::from_name);
                    let space = space.ok_or_else(|| format!("`{word}` is not known here"))?;
                    let variable = self.variable(space)?;
                    self.expect(';')?;
                    if external && variable.bytes.is_some() {
                        return Err(format!("`{}` is not in this module", variable.name));
                    }
                    external = false;
                    module.variables.push(variable);
                }
            }
        }
        Ok(module)
    }

    fn skip_block(&mut self) -> Result<()> {
        self.skip_to('{')?;
        self.skip_to('}')
    }

    /// After the space: `.align 4 .b8 name[20] = {1, 2}`.
    fn variable(&mut self, space: Space) -> Result<Variable> {
        let (mut align, mut scalar) = (0, None);
        let name = loop {
            match self.word()? {
                ".align" => align = self.number()? as usize,
                ".ptr" | ".global" | ".shared" | ".const" | ".local" => {}
                word => match word.strip_prefix('.') {
                    Some(kind) => {
                        scalar = Some(Scalar::from_name(kind).ok_or_else(|| format!("type `{word}`"))?);
                    }
                    None => break word,
                },
            }
        };
        let scalar = scalar.ok_or_else(|| format!("`{name}` has no type"))?;
        let mut count = Some(1);
        while self.take('[') {
            if self.take(']') {
                count = None;
                continue;
            }
            let extent = self.number()? as usize;
            count = count.and_then(|n: usize| n.checked_mul(extent));
            self.expect(']')?;
        }
        let mut initial = Vec::new();
        if self.take('=') {
            let braces = self.take('{');
            initial.push(self.number()?);
            while braces && self.take(',') {
                initial.push(self.number()?);
            }
            if braces {
                self.expect('}')?;
            }
        }
        let bytes = count.and_then(|n| n.checked_mul(scalar.bytes()));
        Ok(Variable { space, scalar, align: align.max(scalar.bytes()).max(1), name: name.to_string(), bytes, initial })
    }

    /// `(.param .b32 a, .param .b64 b)`
    fn parameters(&mut self) -> Result<Vec<Variable>> {
        let mut list = Vec::new();
        self.expect('(')?;
        while !self.take(')') {
            match self.word()? {
                ".param" => list.push(self.variable(Space::Param)?),
                word => return Err(format!("`{word}`, expected `.param`: other parameters are not modelled")),
            }
            self.take(',');
        }
        Ok(list)
    }

    /// None for a declaration without a body.
    fn function(&mut self, entry: bool) -> Result<Option<Function>> {
        let returns = if self.peek() == Some(Token::Sign('(')) { self.parameters()? } else { Vec::new() };
        let name = self.word()?.to_string();
        let parameters = if self.peek() == Some(Token::Sign('(')) { self.parameters()? } else { Vec::new() };
        let mut max_threads = None;
        loop {
            match self.next()? {
                Token::Sign(';') => return Ok(None),
                Token::Sign('{') => break,
                Token::Word(".maxntid" | ".reqntid") => {
                    let mut threads = self.number()?;
                    while self.take(',') {
                        threads *= self.number()?;
                    }
                    max_threads = Some(threads as u32);
                }
                Token::Word(".minnctapersm" | ".maxnreg" | ".noreturn" | ".pragma") | Token::Number(_) => {}
                Token::Text(_) | Token::Sign(',') => {}
                other => return Err(format!("{other:?} before the body of `{name}`")),
            }
        }
        let body = self.body().map_err(|what| format!("{what} (in `{name}`)"))?;
        Ok(Some(Function { name, entry, returns, parameters, max_threads, body }))
    }

    /// Up to the brace that closes it.
    fn body(&mut self) -> Result<Vec<(u32, Statement)>> {
        let mut body = Vec::new();
        let mut depth = 0;
        loop {
            let line = self.line();
            match self.next()? {
                Token::Sign('{') => {
                    depth += 1;
                    body.push((line, Statement::Open));
                }
                Token::Sign('}') if depth == 0 => return Ok(body),
                Token::Sign('}') => {
                    depth -= 1;
                    body.push((line, Statement::Close));
                }
                Token::Sign(';') => {}
                Token::Sign('@') => {
                    let negated = self.take('!');
                    let guard = Some((self.word()?.to_string(), negated));
                    let opcode = self.word()?;
                    body.push((line, Statement::Instruction(self.instruction(guard, opcode)?)));
                }
                Token::Word(".reg") => self.registers(line, &mut body)?,
                Token::Word(".loc" | ".file") => self.skip_line(),
                Token::Word(".pragma") => self.skip_to(';')?,
                Token::Word(word) => match word.strip_prefix('.').map(Space::from_name) {
                    Some(Some(space)) => {
                        let variable = self.variable(space)?;
                        self.expect(';')?;
                        body.push((line, Statement::Variable(variable)));
                    }
                    Some(None) => return Err(format!("`{word}` is not modelled")),
                    None if self.take(':') => body.push((line, Statement::Label(word.to_string()))),
                    None => body.push((line, Statement::Instruction(self.instruction(None, word)?))),
                },
                other => return Err(format!("{other:?}, expected a statement")),
            }
        }
    }

    fn registers(&mut self, line: u32, body: &mut Vec<(u32, Statement)>) -> Result<()> {
        let kind = self.word()?;
        let scalar = kind.strip_prefix('.').and_then(Scalar::from_name).ok_or_else(|| format!("type `{kind}`"))?;
        loop {
            let name = self.word()?.to_string();
            let mut count = None;
            if self.take('<') {
                count = Some(self.number()? as u32);
                self.expect('>')?;
            }
            body.push((line, Statement::Registers { scalar, name, count }));
            if !self.take(',') {
                return self.expect(';');
            }
        }
    }

    fn instruction(&mut self, guard: Option<(String, bool)>, opcode: &str) -> Result<Instruction> {
        let mut operands = Vec::new();
        while !self.take(';') {
            let operand = self.operand()?;
            operands.push(if self.take('|') {
                Operand::Pair(Box::new(operand), Box::new(self.operand()?))
            } else {
                operand
            });
            if self.peek() != Some(Token::Sign(';')) {
                self.expect(',')?;
            }
        }
        Ok(Instruction { guard, opcode: opcode.split('.').map(String::from).collect(), operands })
    }

    fn operands_to(&mut self, close: char) -> Result<Vec<Operand>> {
        let mut list = Vec::new();
        while !self.take(close) {
            list.push(self.operand()?);
            self.take(',');
        }
        Ok(list)
    }

    fn operand(&mut self) -> Result<Operand> {
        Ok(match self.peek() {
            Some(Token::Sign('{')) => {
                self.at += 1;
                Operand::Vector(self.operands_to('}')?)
            }
            Some(Token::Sign('(')) => {
                self.at += 1;
                Operand::List(self.operands_to(')')?)
            }
            Some(Token::Sign('[')) => {
                self.at += 1;
                let base = match self.peek() {
                    Some(Token::Word(word)) => {
                        self.at += 1;
                        Some(word.to_string())
                    }
                    _ => None,
                };
                let offset = if base.is_none() || self.take('+') || self.peek() == Some(Token::Sign('-')) {
                    self.number()?
                } else {
                    0
                };
                self.expect(']')?;
                Operand::Address { base, offset: offset as i64 }
            }
            Some(Token::Sign('!')) => {
                self.at += 1;
                Operand::Not(self.word()?.to_string())
            }
            Some(Token::Word("_")) => {
                self.at += 1;
                Operand::Sink
            }
            Some(Token::Word("WARP_SZ")) => {
                self.at += 1;
                Operand::Immediate(32)
            }
            Some(Token::Word(word)) => {
                self.at += 1;
                Operand::Name(word.to_string())
            }
            _ => Operand::Immediate(self.number()?),
        })
    }
}
