//! Errors as people read them.

/// An error with its causes, each said once: some errors tell their cause themselves.
pub(crate) fn told(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |told, cause| match told {
        told if told.is_empty() => cause,
        told if told.contains(&cause) => told,
        told => format!("{told}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use anyhow::Context;

    use super::*;

    #[test]
    fn causes_are_told_once() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let wrapped: anyhow::Result<()> = Err(full()).context("cannot write x");
        assert_eq!(told(&wrapped.unwrap_err()), "cannot write x: no storage space");
        let twice: anyhow::Result<()> = Err(full()).context("cannot write x: no storage space; make room");
        assert_eq!(told(&twice.unwrap_err()), "cannot write x: no storage space; make room");
    }
}
