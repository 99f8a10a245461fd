//! Reads an input as a sequence of values, for targets that need several: messages, records, files.
//! Reading past the end yields zeros, so that every input is a valid script.

/// The part of the input that is not read yet.
pub(crate) struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    /// A number below `of`.
    pub(crate) fn choice(&mut self, of: usize) -> usize {
        usize::from(self.byte()) % of
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let head = self.take(N);
        array[..head.len()].copy_from_slice(head);
        array
    }

    /// A number of two bytes; if they are `u16::MAX`, the next eight bytes instead.
    pub(crate) fn number(&mut self) -> u64 {
        match u16::from_le_bytes(self.array()) {
            u16::MAX => u64::from_le_bytes(self.array()),
            small => small.into(),
        }
    }

    /// A byte string after its length of two bytes, cut to what is left.
    pub(crate) fn bytes(&mut self) -> &'a [u8] {
        let size = u16::from_le_bytes(self.array());
        self.take(size.into())
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }

    fn take(&mut self, size: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(size.min(self.0.len()));
        self.0 = tail;
        head
    }
}

/// Builds an input for [`Script`].
#[derive(Default)]
pub(crate) struct ScriptBuilder(pub(crate) Vec<u8>);

impl ScriptBuilder {
    pub(crate) fn byte(mut self, byte: u8) -> Self {
        self.0.push(byte);
        self
    }

    pub(crate) fn number(mut self, number: u64) -> Self {
        match u16::try_from(number) {
            Ok(small) if small < u16::MAX => self.0.extend(small.to_le_bytes()),
            _ => {
                self.0.extend(u16::MAX.to_le_bytes());
                self.0.extend(number.to_le_bytes());
            }
        }
        self
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(u16::try_from(bytes.len()).unwrap().to_le_bytes());
        self.rest(bytes)
    }

    pub(crate) fn rest(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
}
