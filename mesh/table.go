package mesh

import (
	"iter"
	"slices"
)

// Table is objects of one kind in the order of a key. Immutable once its Snapshot is out, so equal
// pointers are equal content. A nil Table is empty.
type Table[T comparable] struct {
	keys []string
	rows []T
}

// Len returns the number of rows.
func (t *Table[T]) Len() int {
	if t == nil {
		return 0
	}
	return len(t.rows)
}

// Get returns the row of a key, or the zero value.
func (t *Table[T]) Get(key string) (row T) {
	if t == nil {
		return row
	}
	if i, ok := slices.BinarySearch(t.keys, key); ok {
		return t.rows[i]
	}
	return row
}

// All yields the rows in order.
func (t *Table[T]) All() iter.Seq[T] {
	return func(yield func(T) bool) {
		if t == nil {
			return
		}
		for _, r := range t.rows {
			if !yield(r) {
				return
			}
		}
	}
}

// prefixed returns the rows whose key begins with prefix.
func (t *Table[T]) prefixed(prefix string) []T {
	if t == nil {
		return nil
	}
	i, _ := slices.BinarySearch(t.keys, prefix)
	j := i
	for j < len(t.keys) && len(t.keys[j]) >= len(prefix) && t.keys[j][:len(prefix)] == prefix {
		j++
	}
	return t.rows[i:j]
}

// clone returns a copy that may be edited.
func (t *Table[T]) clone() *Table[T] {
	if t == nil {
		return &Table[T]{}
	}
	return &Table[T]{slices.Clone(t.keys), slices.Clone(t.rows)}
}

// set edits the table in place: row becomes the row of key, or, if gone, the key goes.
func (t *Table[T]) set(key string, row T, gone bool) {
	i, ok := slices.BinarySearch(t.keys, key)
	switch {
	case ok && gone:
		t.keys, t.rows = slices.Delete(t.keys, i, i+1), slices.Delete(t.rows, i, i+1)
	case ok:
		t.rows[i] = row
	case !gone:
		t.keys, t.rows = slices.Insert(t.keys, i, key), slices.Insert(t.rows, i, row)
	}
}
