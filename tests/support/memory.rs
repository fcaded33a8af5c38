//! What a thread holds of the heap, as glibc's allocator counts it: so tests beside each other do not
//! disturb each other, and the numbers are the same each time.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, and the books.
pub struct Counted;

#[global_allocator]
static COUNTED: Counted = Counted;

/// The chunk that glibc cuts for an allocation: 8 bytes before it, at least 32, a multiple of 16.
fn chunk(size: usize) -> isize {
    isize::try_from((size + 8).next_multiple_of(16).max(32)).unwrap_or(isize::MAX)
}

fn book(bytes: isize) {
    // A thread that ends frees what it has after its books are closed.
    let _closed = HELD.try_with(|held| held.set(held.get() + bytes));
}

// SAFETY: all calls go to the system's allocator as they came.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        book(chunk(layout.size()));
        // SAFETY: the caller's duties are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        book(-chunk(layout.size()));
        // SAFETY: the caller's duties are the same.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        book(chunk(layout.size()));
        // SAFETY: the caller's duties are the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        book(chunk(size) - chunk(layout.size()));
        // SAFETY: the caller's duties are the same.
        unsafe { System.realloc(at, layout, size) }
    }
}

/// The bytes that this thread has taken from the heap and not given back.
pub fn held() -> isize {
    HELD.with(Cell::get)
}
