//! Any payload of any message: it is refused or read, and what was read is written, read and written
//! again to the same bytes. Its extension fields can be walked whatever they are.

use proto::message::{Message, Received};

use super::Bytes;

pub fn run(data: &[u8]) {
    let mut data = Bytes::new(data);
    let (extension, number) = (u16::from(data.byte() % 4), data.byte());
    let Ok(Received::Known(message, tlvs)) = Message::decode(extension, number, data.rest()) else {
        return;
    };
    let mut first = Vec::new();
    message.write_payload(&mut first);
    let Ok(Received::Known(again, none)) = Message::decode(extension, number, &first) else {
        panic!("{} does not read what it wrote", message.name());
    };
    assert!(none.as_slice().is_empty());
    let mut second = Vec::new();
    again.write_payload(&mut second);
    // Bytes and not `==`, for which a NaN is not itself.
    assert!(first == second, "{} writes another message than it read", message.name());
    assert_eq!(message.kind().1, number);

    let whole = tlvs.iter().take_while(Result::is_ok).count();
    assert!(whole * 5 <= tlvs.as_slice().len(), "each field has a head of five bytes");
    if let Ok(Some(name)) = tlvs.worker() {
        assert!(name.len() <= 32);
    }
    if let Message::ProvideMissingTransactionsSuccess(message) = message {
        assert_eq!(message.transaction_list.iter().count(), message.transaction_list.len());
    }
    if let Message::RequestTransactionDataSuccess(message) = message {
        assert_eq!(message.transaction_list.iter().count(), message.transaction_list.len());
    }
}
