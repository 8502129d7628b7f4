//! What a panic says, kept by a hook, since `catch_unwind` gives the payload alone.

use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::RefCell;
use std::panic;
use std::sync::Once;

use crate::error::Panic;

thread_local! {
    /// Place and stack of this thread's last panic.
    static NOTED: RefCell<Option<(String, String)>> = const { RefCell::new(None) };
}

/// Notes the place of each panic from now on, before the present hook does what it does.
///
/// A copy of a process that does so does so too.
pub(crate) fn note_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let location = info.location().map(ToString::to_string).unwrap_or_default();
            let backtrace = Backtrace::force_capture().to_string();
            // A panic while the thread's locals are being destroyed goes without.
            let _ = NOTED.try_with(|noted| noted.replace(Some((location, backtrace))));
            previous(info);
        }));
    });
}

/// Puts a caught payload and what the hook noted together.
pub(crate) fn take_panic(payload: Box<dyn Any + Send>) -> Panic {
    let message = match payload.downcast::<String>() {
        Ok(message) => *message,
        Err(payload) => match payload.downcast::<&'static str>() {
            Ok(message) => (*message).to_owned(),
            Err(payload) => {
                // The payload is the program's own and may panic when dropped.
                std::mem::forget(payload);
                "Box<dyn Any>".to_owned()
            }
        },
    };
    let (location, backtrace) = NOTED.with(RefCell::take).unwrap_or_default();
    Panic {
        message,
        location,
        backtrace,
    }
}
