package config

import (
	"errors"
	"fmt"
	"strconv"
)

// Error is the refusal of a resource: which field, and why.
type Error struct {
	Kind string // "listener", "cluster", "route configuration", …
	Name string
	Path string // of the field, in proto names: "filter_chains[0].filters[1].typed_config"
	Err  error
}

// Error returns `KIND "NAME": PATH: reason`.
func (e *Error) Error() string {
	s := e.Kind
	if e.Name != "" {
		s += " " + strconv.Quote(e.Name)
	}
	if e.Path != "" {
		s += ": " + e.Path
	}
	return s + ": " + e.Err.Error()
}

// Unwrap returns the reason.
func (e *Error) Unwrap() error { return e.Err }

// errNotSupported is the reason for fields and values that the proxy cannot honour.
var errNotSupported = errors.New("not supported")

// notSupported is errNotSupported with the value that is not.
func notSupported(what string) error { return fmt.Errorf("%s is %w", what, errNotSupported) }

// fieldError is an error below some message; the path grows as it goes up.
type fieldError struct {
	path string
	err  error
}

func (e *fieldError) Error() string { return e.path + ": " + e.err.Error() }
func (e *fieldError) Unwrap() error { return e.err }

// in says that err, if it is not nil, happened in a field.
func in(field string, err error) error {
	if err == nil {
		return nil
	}
	var fe *fieldError
	if errors.As(err, &fe) {
		sep := "."
		if fe.path[0] == '[' {
			sep = ""
		}
		return &fieldError{field + sep + fe.path, fe.err}
	}
	return &fieldError{field, err}
}

// inIndex is in for an element of a repeated field.
func inIndex(field string, i int, err error) error {
	if err == nil {
		return nil
	}
	return in(field+"["+strconv.Itoa(i)+"]", err)
}

// inKey is in for an entry of a map field.
func inKey(field, key string, err error) error {
	if err == nil {
		return nil
	}
	return in(field+"["+strconv.Quote(key)+"]", err)
}
