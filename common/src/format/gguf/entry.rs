//! A metadata value as it is written: of the width that llama.cpp's own converter gives it.

#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Floats(Vec<f32>),
    Ints(Vec<i32>),
}
