package accesslog

import (
	"fmt"
	"strconv"
)

// grpcCodes are the names of gRPC status codes: camel case and snake case.
var grpcCodes = [...][2]string{
	{"OK", "OK"}, {"Canceled", "CANCELLED"}, {"Unknown", "UNKNOWN"}, {"InvalidArgument", "INVALID_ARGUMENT"},
	{"DeadlineExceeded", "DEADLINE_EXCEEDED"}, {"NotFound", "NOT_FOUND"}, {"AlreadyExists", "ALREADY_EXISTS"},
	{"PermissionDenied", "PERMISSION_DENIED"}, {"ResourceExhausted", "RESOURCE_EXHAUSTED"},
	{"FailedPrecondition", "FAILED_PRECONDITION"}, {"Aborted", "ABORTED"}, {"OutOfRange", "OUT_OF_RANGE"},
	{"Unimplemented", "UNIMPLEMENTED"}, {"Internal", "INTERNAL"}, {"Unavailable", "UNAVAILABLE"},
	{"DataLoss", "DATA_LOSS"}, {"Unauthenticated", "UNAUTHENTICATED"},
}

// grpcStatus returns grpc-status of the trailers, else of the response headers.
func grpcStatus(e *Entry) (int, bool) {
	_, b, ok := of(e.Trailer, "grpc-status")
	if !ok {
		_, b, ok = of(e.Response, "grpc-status")
	}
	if !ok || len(b) == 0 || len(b) > 3 {
		return 0, false
	}
	n := 0
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = 10*n + int(c-'0')
	}
	return n, true
}

func grpcStatusOp(arg string) (valueFunc, error) {
	form := 0
	switch arg {
	case "", "CAMEL_STRING":
	case "SNAKE_STRING":
		form = 1
	case "NUMBER":
		form = 2
	default:
		return nil, fmt.Errorf("%q is none of CAMEL_STRING, SNAKE_STRING, NUMBER", arg)
	}
	return func(dst []byte, e *Entry) ([]byte, bool) {
		n, ok := grpcStatus(e)
		switch {
		case !ok:
			return dst, false
		case form == 2 || n >= len(grpcCodes):
			return strconv.AppendInt(dst, int64(n), 10), true
		}
		return append(dst, grpcCodes[n][form]...), true
	}, nil
}
