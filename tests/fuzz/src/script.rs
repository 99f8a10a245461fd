//! Bytes as a list of orders: for targets whose input is several things one after another. Read from the front; past the
//! end all is zero, so that every input means something.

/// Orders not read yet.
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

    /// One of so many.
    pub(crate) fn choice(&mut self, of: usize) -> usize {
        usize::from(self.byte()) % of
    }

    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let head = self.take(N);
        array[..head.len()].copy_from_slice(head);
        array
    }

    /// Small as a rule, and then any.
    pub(crate) fn number(&mut self) -> u64 {
        match u16::from_le_bytes(self.array()) {
            u16::MAX => u64::from_le_bytes(self.array()),
            small => small.into(),
        }
    }

    /// So many bytes as two say, or the rest.
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

/// Writes what a [`Script`] reads.
#[derive(Default)]
pub(crate) struct Orders(pub(crate) Vec<u8>);

impl Orders {
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
