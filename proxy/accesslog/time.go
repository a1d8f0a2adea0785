package accesslog

import (
	"fmt"
	"strconv"
	"time"
)

// timeOp compiles a strftime format; none gives RFC 3339 with milliseconds in UTC.
func timeOp(of func(e *Entry) time.Time) func(format string) (valueFunc, error) {
	return func(format string) (valueFunc, error) {
		if format == "" {
			return func(dst []byte, e *Entry) ([]byte, bool) {
				t := of(e)
				if t.IsZero() {
					return dst, false
				}
				return appendStamp(dst, t), true
			}, nil
		}
		parts, err := parseTime(format)
		if err != nil {
			return nil, err
		}
		return func(dst []byte, e *Entry) ([]byte, bool) {
			t := of(e)
			if t.IsZero() {
				return dst, false
			}
			t = t.UTC()
			for _, p := range parts {
				dst = p(dst, t)
			}
			return dst, true
		}, nil
	}
}

// appendStamp appends 2006-01-02T15:04:05.000Z.
func appendStamp(dst []byte, t time.Time) []byte {
	t = t.UTC()
	y, mo, d := t.Date()
	h, mi, s := t.Clock()
	dst = pad(dst, y, 4)
	dst = pad(append(dst, '-'), int(mo), 2)
	dst = pad(append(dst, '-'), d, 2)
	dst = pad(append(dst, 'T'), h, 2)
	dst = pad(append(dst, ':'), mi, 2)
	dst = pad(append(dst, ':'), s, 2)
	dst = pad(append(dst, '.'), t.Nanosecond()/1e6, 3)
	return append(dst, 'Z')
}

// pad appends n with at least width digits.
func pad(dst []byte, n, width int) []byte {
	for p := width - 1; p > 0; p-- {
		if n < pow10(p) {
			dst = append(dst, '0')
		}
	}
	return strconv.AppendInt(dst, int64(n), 10)
}

func pow10(n int) int {
	p := 1
	for range n {
		p *= 10
	}
	return p
}

type timePart func(dst []byte, t time.Time) []byte

func literal(s string) timePart {
	return func(dst []byte, _ time.Time) []byte { return append(dst, s...) }
}

func layout(s string) timePart {
	return func(dst []byte, t time.Time) []byte { return t.AppendFormat(dst, s) }
}

// layouts are strftime's conversions that Go's layouts have.
var layouts = map[byte]string{
	'Y': "2006", 'y': "06", 'm': "01", 'd': "02", 'e': "_2", 'H': "15", 'I': "03", 'M': "04", 'S': "05",
	'p': "PM", 'a': "Mon", 'A': "Monday", 'b': "Jan", 'h': "Jan", 'B': "January", 'j': "002",
	'F': "2006-01-02", 'T': "15:04:05", 'R': "15:04", 'D': "01/02/06", 'z': "-0700", 'Z': "MST",
}

func parseTime(format string) ([]timePart, error) {
	var parts []timePart
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			parts = append(parts, literal(format[i:i+1]))
			continue
		}
		i++
		if i == len(format) {
			return nil, fmt.Errorf("time format %q ends with %%", format)
		}
		c := format[i]
		switch {
		case c == '%':
			parts = append(parts, literal("%"))
		case c == 's':
			parts = append(parts, func(dst []byte, t time.Time) []byte { return strconv.AppendInt(dst, t.Unix(), 10) })
		case c == 'f':
			parts = append(parts, fraction(9))
		case '1' <= c && c <= '9' && i+1 < len(format) && format[i+1] == 'f':
			parts = append(parts, fraction(int(c-'0')))
			i++
		case layouts[c] != "":
			parts = append(parts, layout(layouts[c]))
		default:
			return nil, fmt.Errorf("time format %q: %%%c is %w", format, c, errNotSupported)
		}
	}
	return parts, nil
}

// fraction appends so many digits of the second's fraction.
func fraction(digits int) timePart {
	unit := pow10(9 - digits)
	return func(dst []byte, t time.Time) []byte { return pad(dst, t.Nanosecond()/unit, digits) }
}
