//! SQLite's own interface, for transactions on one thread: values are bound and read as they are.
//!
//! It works on the connection of the driver, which leaves it alone meanwhile. All unsafe code of these transactions is
//! here.

use std::borrow::Cow;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CStr, CString, c_int, c_uint};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};

use laneway_core::StoreError;
use libsqlite3_sys::{
    SQLITE_DONE, SQLITE_NULL, SQLITE_OK, SQLITE_PREPARE_PERSISTENT, SQLITE_ROW, SQLITE_STATIC, SQLITE_UTF8,
    sqlite3, sqlite3_bind_blob64, sqlite3_bind_int64, sqlite3_bind_null, sqlite3_bind_parameter_count,
    sqlite3_bind_text64, sqlite3_changes64, sqlite3_column_blob, sqlite3_column_bytes, sqlite3_column_count,
    sqlite3_column_int64, sqlite3_column_text, sqlite3_column_type, sqlite3_errmsg, sqlite3_exec,
    sqlite3_extended_errcode, sqlite3_finalize, sqlite3_get_autocommit, sqlite3_last_insert_rowid,
    sqlite3_prepare_v3, sqlite3_reset, sqlite3_step, sqlite3_stmt,
};
use sqlx::SqliteConnection;
use sqlx::sqlite::LockedSqliteHandle;

use super::connection::{classify, classify_code};

/// The statements that a connection keeps prepared, by place and length of their texts, which never change: to hash a text
/// would take longer than to run some of them. They are to be finalized before the connection is closed, with its handle
/// locked. SQLite closes no connection that has statements, so that none of them outlives it.
#[derive(Default)]
pub(super) struct Kept {
    /// Whose statements they are, once there are any.
    database: Option<NonNull<sqlite3>>,
    statements: HashMap<(usize, usize), NonNull<sqlite3_stmt>>,
}

// SAFETY: a statement may be used by any thread, as long as no other one uses its connection. It is used only through
// `Native`, which has the connection locked, and which borrows this.
unsafe impl Send for Kept {}

impl Kept {
    pub(super) fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }

    /// Binds them to the connection that is locked. Panics if there are statements of another one.
    fn of(&mut self, handle: &mut LockedSqliteHandle<'_>) -> NonNull<sqlite3> {
        let database = handle.as_raw_handle();
        assert_eq!(*self.database.get_or_insert(database), database, "statements are of one connection");
        database
    }

    /// Lets go of the statements, which are those of this connection.
    pub(super) fn finalize(&mut self, handle: &mut LockedSqliteHandle<'_>) {
        self.of(handle);
        for (_, statement) in self.statements.drain() {
            // SAFETY: it was prepared and not finalized yet, and nobody uses its connection.
            unsafe { sqlite3_finalize(statement.as_ptr()) };
        }
    }
}

/// A connection that one task has for itself, with its own statements.
pub(super) struct Held<'c> {
    handle: LockedSqliteHandle<'c>,
    kept: Kept,
}

impl<'c> Held<'c> {
    /// Waits until the driver has ended what it was asked for.
    pub(super) async fn lock(connection: &'c mut SqliteConnection) -> Result<Self, StoreError> {
        let handle = connection.lock_handle().await.map_err(classify)?;
        Ok(Self { handle, kept: Kept::default() })
    }

    pub(super) fn native(&mut self) -> Native<'_> {
        Native::new(&mut self.handle, &mut self.kept)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.kept.finalize(&mut self.handle);
    }
}

/// A value to be bound.
#[derive(Debug, Clone, Copy)]
pub(super) enum Value<'v> {
    Null,
    Integer(i64),
    Text(&'v str),
    Blob(&'v [u8]),
}

impl From<i64> for Value<'_> {
    fn from(value: i64) -> Self {
        Self::Integer(value)
    }
}

impl From<i32> for Value<'_> {
    fn from(value: i32) -> Self {
        Self::Integer(value.into())
    }
}

impl From<u32> for Value<'_> {
    fn from(value: u32) -> Self {
        Self::Integer(value.into())
    }
}

impl From<bool> for Value<'_> {
    fn from(value: bool) -> Self {
        Self::Integer(value.into())
    }
}

impl<'v> From<&'v str> for Value<'v> {
    fn from(value: &'v str) -> Self {
        Self::Text(value)
    }
}

impl<'v> From<&'v [u8]> for Value<'v> {
    fn from(value: &'v [u8]) -> Self {
        Self::Blob(value)
    }
}

impl<'v, T: Into<Value<'v>>> From<Option<T>> for Value<'v> {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null, Into::into)
    }
}

/// A connection that nobody else uses while this lives.
pub(super) struct Native<'c> {
    database: NonNull<sqlite3>,
    kept: &'c mut Kept,
}

impl<'c> Native<'c> {
    /// The connection of a handle, and its statements.
    pub(super) fn new(handle: &'c mut LockedSqliteHandle<'_>, kept: &'c mut Kept) -> Self {
        Self { database: kept.of(handle), kept }
    }

    /// Runs a statement that has no values and answers no rows, without keeping it.
    pub(super) fn execute(&mut self, statement: &CStr) -> Result<(), StoreError> {
        // SAFETY: the connection is open and ours; the text ends with a zero; nothing is called back, and no message is
        // asked for.
        let code = unsafe {
            sqlite3_exec(self.database.as_ptr(), statement.as_ptr(), None, ptr::null_mut(), ptr::null_mut())
        };
        if code == SQLITE_OK { Ok(()) } else { Err(error(self.database)) }
    }

    /// Rolls the transaction back, unless none was begun or SQLite has rolled it back by itself.
    pub(super) fn roll_back(&mut self) -> Result<(), StoreError> {
        // SAFETY: the connection is open and ours.
        let is_open = unsafe { sqlite3_get_autocommit(self.database.as_ptr()) == 0 };
        if is_open { self.execute(c"ROLLBACK") } else { Ok(()) }
    }

    /// Number of the last row that was inserted into a table that has numbers.
    pub(super) fn last_insert_rowid(&self) -> i64 {
        // SAFETY: the connection is open and ours.
        unsafe { sqlite3_last_insert_rowid(self.database.as_ptr()) }
    }

    /// A statement, prepared once and kept.
    pub(super) fn statement(&mut self, text: &'static str) -> Result<Statement<'_>, StoreError> {
        let database = self.database;
        let raw = match self.kept.statements.entry((text.as_ptr().addr(), text.len())) {
            Entry::Occupied(kept) => *kept.get(),
            Entry::Vacant(place) => *place.insert(prepare(database, text, SQLITE_PREPARE_PERSISTENT)?),
        };
        Ok(Statement { database, raw, is_kept: true, _connection: PhantomData })
    }

    /// A statement, kept if its text is one that never changes.
    pub(super) fn prepare(&mut self, text: impl Into<Cow<'static, str>>) -> Result<Statement<'_>, StoreError> {
        match text.into() {
            Cow::Borrowed(text) => self.statement(text),
            Cow::Owned(text) => {
                let raw = prepare(self.database, &text, 0)?;
                Ok(Statement { database: self.database, raw, is_kept: false, _connection: PhantomData })
            }
        }
    }

    /// Runs a statement that answers no rows, once. Answers the rows that it touched.
    pub(super) fn run(&mut self, text: &'static str, values: &[Value<'_>]) -> Result<u64, StoreError> {
        self.statement(text)?.run(values)
    }

    /// Runs a statement that answers one number.
    pub(super) fn number(&mut self, text: &'static str, values: &[Value<'_>]) -> Result<i64, StoreError> {
        let mut number = 0;
        self.statement(text)?.each(values, |row| number = row.integer(0))?;
        Ok(number)
    }
}

fn prepare(database: NonNull<sqlite3>, text: &str, flags: c_uint) -> Result<NonNull<sqlite3_stmt>, StoreError> {
    let other = |error: String| StoreError::Other(error);
    let text = CString::new(text).map_err(|error| other(error.to_string()))?;
    let mut statement = ptr::null_mut();
    // SAFETY: the connection is open and ours; the text ends with a zero, which SQLite looks for as the length is -1.
    let code = unsafe {
        sqlite3_prepare_v3(database.as_ptr(), text.as_ptr(), -1, flags, &raw mut statement, ptr::null_mut())
    };
    if code != SQLITE_OK {
        return Err(error(database));
    }
    NonNull::new(statement).ok_or_else(|| other("a statement is empty".to_owned()))
}

/// The error of the last call.
fn error(database: NonNull<sqlite3>) -> StoreError {
    // SAFETY: the connection is open and ours. Its message is a text that ends with a zero, which stays until the next
    // call; it is copied before.
    let (code, text) = unsafe {
        let text = CStr::from_ptr(sqlite3_errmsg(database.as_ptr()));
        (sqlite3_extended_errcode(database.as_ptr()), text.to_string_lossy().into_owned())
    };
    classify_code(code.unsigned_abs(), text)
}

/// A prepared statement, of a connection that nobody else uses while this lives.
pub(super) struct Statement<'n> {
    database: NonNull<sqlite3>,
    raw: NonNull<sqlite3_stmt>,
    is_kept: bool,
    _connection: PhantomData<&'n mut ()>,
}

impl Drop for Statement<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            // SAFETY: it was prepared for this alone, and its connection is ours.
            unsafe { sqlite3_finalize(self.raw.as_ptr()) };
        }
    }
}

impl Statement<'_> {
    /// Runs it to the end, and lets `take` read each row. Answers the rows that it touched, if it is one that writes.
    pub(super) fn each(
        &mut self,
        values: &[Value<'_>],
        mut take: impl FnMut(&mut Row<'_>),
    ) -> Result<u64, StoreError> {
        /// Resets the statement however the run ends, so that it holds no lock and the next run begins anew.
        struct Running(NonNull<sqlite3_stmt>);
        impl Drop for Running {
            fn drop(&mut self) {
                // SAFETY: it is prepared, and its connection ours. The code tells of the run's error once more.
                unsafe { sqlite3_reset(self.0.as_ptr()) };
            }
        }
        let running = Running(self.raw);
        self.bind(values)?;
        loop {
            // SAFETY: it is prepared, and its connection ours. What is bound lives until the end of this call, and is
            // bound anew before the next.
            match unsafe { sqlite3_step(self.raw.as_ptr()) } {
                SQLITE_ROW => take(&mut Row { raw: &running.0 }),
                SQLITE_DONE => break,
                _ => return Err(error(self.database)),
            }
        }
        // SAFETY: the connection is open and ours.
        let changes = unsafe { sqlite3_changes64(self.database.as_ptr()) };
        Ok(u64::try_from(changes).unwrap_or_default())
    }

    /// Runs it to the end. Answers the rows that it touched.
    pub(super) fn run(&mut self, values: &[Value<'_>]) -> Result<u64, StoreError> {
        self.each(values, |_| {})
    }

    /// Binds all values, so that nothing of an earlier run is left bound.
    fn bind(&mut self, values: &[Value<'_>]) -> Result<(), StoreError> {
        let raw = self.raw.as_ptr();
        // SAFETY: it is prepared, and its connection ours.
        let wanted = unsafe { sqlite3_bind_parameter_count(raw) };
        if c_int::try_from(values.len()) != Ok(wanted) {
            return Err(StoreError::Other(format!("{} values for a statement of {wanted}", values.len())));
        }
        for (place, value) in (1..).zip(values) {
            // SAFETY: it is prepared and not running, and its connection ours; lengths are those of the values. SQLite
            // keeps pointers to texts and blobs: the caller runs the statement while they live, and each run binds all
            // values anew.
            let code = unsafe {
                match *value {
                    Value::Null => sqlite3_bind_null(raw, place),
                    Value::Integer(value) => sqlite3_bind_int64(raw, place, value),
                    Value::Text(text) => {
                        let (start, length) = (text.as_ptr().cast(), text.len() as u64);
                        sqlite3_bind_text64(raw, place, start, length, SQLITE_STATIC(), SQLITE_UTF8 as u8)
                    }
                    Value::Blob(blob) => {
                        sqlite3_bind_blob64(raw, place, blob.as_ptr().cast(), blob.len() as u64, SQLITE_STATIC())
                    }
                }
            };
            if code != SQLITE_OK {
                return Err(error(self.database));
            }
        }
        Ok(())
    }
}

/// The row that a statement is at.
pub(super) struct Row<'r> {
    raw: &'r NonNull<sqlite3_stmt>,
}

impl Row<'_> {
    /// Panics, rather than reading what is not there.
    fn column(&self, column: usize) -> c_int {
        // SAFETY: the statement is prepared and at a row, and its connection ours.
        let columns = unsafe { sqlite3_column_count(self.raw.as_ptr()) };
        match c_int::try_from(column) {
            Ok(column) if column < columns => column,
            _ => panic!("column {column} of {columns}"),
        }
    }

    /// An integer; 0 of NULL.
    pub(super) fn integer(&self, column: usize) -> i64 {
        let column = self.column(column);
        // SAFETY: the statement is at a row, and has this column.
        unsafe { sqlite3_column_int64(self.raw.as_ptr(), column) }
    }

    pub(super) fn is_null(&self, column: usize) -> bool {
        let column = self.column(column);
        // SAFETY: the statement is at a row, and has this column.
        unsafe { sqlite3_column_type(self.raw.as_ptr(), column) == SQLITE_NULL }
    }

    /// A text, whatever bytes it has: what is no UTF-8 is replaced.
    pub(super) fn text(&mut self, column: usize) -> Option<Cow<'_, str>> {
        let column = self.column(column);
        // SAFETY: the statement is at a row, and has this column. The text is made before its length is asked for, and
        // lives until the next call for this column or the next step; the borrow of the row ends before either.
        let bytes = unsafe {
            let text = sqlite3_column_text(self.raw.as_ptr(), column);
            if text.is_null() {
                return None;
            }
            let length = usize::try_from(sqlite3_column_bytes(self.raw.as_ptr(), column)).unwrap_or_default();
            std::slice::from_raw_parts(text, length)
        };
        Some(String::from_utf8_lossy(bytes))
    }

    /// The bytes of a blob or of a text.
    pub(super) fn bytes(&mut self, column: usize) -> Option<&[u8]> {
        if self.is_null(column) {
            return None;
        }
        let column = self.column(column);
        // SAFETY: as for a text. Of an empty blob the pointer is null.
        unsafe {
            let blob: *const u8 = sqlite3_column_blob(self.raw.as_ptr(), column).cast();
            let length = usize::try_from(sqlite3_column_bytes(self.raw.as_ptr(), column)).unwrap_or_default();
            if blob.is_null() { Some(&[]) } else { Some(std::slice::from_raw_parts(blob, length)) }
        }
    }
}
