package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	alog "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filelog "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	streamlog "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/formatter/metadata/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/formatter/req_without_query/v3"

	"github.com/carrick-mesh/carrick/proxy/accesslog"
)

func compileLogs(field string, ls []*alog.AccessLog) ([]*AccessLog, error) {
	var out []*AccessLog
	for i, l := range ls {
		a, err := compileLog(l)
		if err != nil {
			return nil, inIndex(field, i, err)
		}
		out = append(out, a)
	}
	return out, nil
}

func compileLog(l *alog.AccessLog) (*AccessLog, error) {
	a := &AccessLog{}
	m, err := unpack(l.GetTypedConfig())
	if err != nil {
		return nil, in("typed_config", err)
	}
	switch m := m.(type) {
	case *filelog.FileAccessLog:
		a.Path = m.Path
		a.Format, err = compileFileFormat(m)
		if err == nil && m.Path == "" {
			err = in("path", errors.New("is empty"))
		}
		if err == nil {
			err = in("path", folderOf(m.Path))
		}
	case *streamlog.StdoutAccessLog:
		a.Path = "/dev/stdout"
		a.Format, err = compileFormat("log_format", m.GetLogFormat(), true)
	case *streamlog.StderrAccessLog:
		a.Path = "/dev/stderr"
		a.Format, err = compileFormat("log_format", m.GetLogFormat(), true)
	default:
		err = notSupported(l.GetTypedConfig().GetTypeUrl())
	}
	if err != nil {
		return nil, in("typed_config", err)
	}
	if l.Filter != nil {
		a.Filter, err = compileLogFilter(l.Filter)
	}
	return a, in("filter", err)
}

func compileFileFormat(m *filelog.FileAccessLog) (*accesslog.Format, error) {
	switch f := m.AccessLogFormat.(type) {
	case *filelog.FileAccessLog_Format:
		x, err := accesslog.Parse(f.Format, accesslog.Options{})
		return x, in("format", err)
	case *filelog.FileAccessLog_JsonFormat:
		x, err := accesslog.ParseJSON(f.JsonFormat, accesslog.Options{JSONStrings: true})
		return x, in("json_format", err)
	case *filelog.FileAccessLog_TypedJsonFormat:
		x, err := accesslog.ParseJSON(f.TypedJsonFormat, accesslog.Options{})
		return x, in("typed_json_format", err)
	}
	return compileFormat("log_format", m.GetLogFormat(), true)
}

// compileFormat compiles a format; log adds the newline that JSON lines end with, and gives an absent
// format Envoy's default.
func compileFormat(field string, f *core.SubstitutionFormatString, log bool) (*accesslog.Format, error) {
	if f == nil {
		x, err := accesslog.Parse(accesslog.DefaultFormat, accesslog.Options{})
		return x, in(field, err)
	}
	for i, ext := range f.Formatters {
		if _, err := unpack(ext.GetTypedConfig()); err != nil {
			return nil, in(field, inIndex("formatters", i, in("typed_config", err)))
		}
	}
	o := accesslog.Options{OmitEmpty: f.OmitEmptyValues, NoNewline: !log}
	var x *accesslog.Format
	var err error
	var sub string
	switch s := f.Format.(type) {
	case *core.SubstitutionFormatString_TextFormat:
		sub = "text_format"
		x, err = accesslog.Parse(s.TextFormat, o)
	case *core.SubstitutionFormatString_TextFormatSource:
		sub = "text_format_source"
		d := compileData(s.TextFormatSource)
		if d.File != "" {
			return nil, in(field, in(sub, in("filename", errNotSupported)))
		}
		x, err = accesslog.Parse(string(d.Inline), o)
	case *core.SubstitutionFormatString_JsonFormat:
		sub = "json_format"
		x, err = accesslog.ParseJSON(s.JsonFormat, o)
	default:
		err = errors.New("has no format")
		return nil, in(field, err)
	}
	return x, in(field, in(sub, err))
}

func compileLogFilter(f *alog.AccessLogFilter) (*LogFilter, error) {
	out := &LogFilter{}
	var err error
	switch s := f.FilterSpecifier.(type) {
	case *alog.AccessLogFilter_StatusCodeFilter:
		out.Status, err = compileComparison(s.StatusCodeFilter.GetComparison())
		err = in("status_code_filter.comparison", err)
	case *alog.AccessLogFilter_DurationFilter:
		out.Duration, err = compileComparison(s.DurationFilter.GetComparison())
		err = in("duration_filter.comparison", err)
	case *alog.AccessLogFilter_NotHealthCheckFilter:
		// Holds for all: without a health check filter no request counts as a health check.
	case *alog.AccessLogFilter_RuntimeFilter:
		var x Fraction
		x, err = compileFraction(s.RuntimeFilter.GetPercentSampled())
		out.Fraction, err = &x, in("runtime_filter.percent_sampled", err)
	case *alog.AccessLogFilter_AndFilter:
		out.And, err = compileLogFilters("and_filter.filters", s.AndFilter.GetFilters())
	case *alog.AccessLogFilter_OrFilter:
		out.Or, err = compileLogFilters("or_filter.filters", s.OrFilter.GetFilters())
	case *alog.AccessLogFilter_HeaderFilter:
		var h HeaderMatcher
		h, err = compileHeaderMatcher(s.HeaderFilter.GetHeader())
		out.Header, err = &h, in("header_filter.header", err)
	case *alog.AccessLogFilter_ResponseFlagFilter:
		if len(s.ResponseFlagFilter.Flags) == 0 {
			out.AnyFlag = true
		}
		for i, name := range s.ResponseFlagFilter.Flags {
			flag := accesslog.ParseFlag(name)
			if flag == 0 {
				return nil, inIndex("response_flag_filter.flags", i, notSupported(name))
			}
			out.Flags |= flag
		}
	default:
		err = errors.New("is empty")
	}
	return out, err
}

func compileLogFilters(field string, fs []*alog.AccessLogFilter) ([]*LogFilter, error) {
	var out []*LogFilter
	for i, f := range fs {
		x, err := compileLogFilter(f)
		if err != nil {
			return nil, inIndex(field, i, err)
		}
		out = append(out, x)
	}
	return out, nil
}

func compileComparison(c *alog.ComparisonFilter) (*Comparison, error) {
	ops := map[alog.ComparisonFilter_Op]CompareOp{
		alog.ComparisonFilter_EQ: Equal, alog.ComparisonFilter_GE: GreaterEqual,
		alog.ComparisonFilter_LE: LessEqual, alog.ComparisonFilter_NE: NotEqual,
	}
	op, ok := ops[c.GetOp()]
	if !ok {
		return nil, in("op", notSupported(c.GetOp().String()))
	}
	return &Comparison{op, uint64(c.GetValue().GetDefaultValue())}, nil
}

// entryRequest lets header matchers look into a log entry.
type entryRequest struct{ e *accesslog.Entry }

func (r entryRequest) Header(name string) (string, bool) {
	if r.e.Header == nil {
		return "", false
	}
	b, ok := r.e.Header.Get(name)
	return string(b), ok
}

func (r entryRequest) Nth(name string, i int) (string, bool) {
	if r.e.Header == nil {
		return "", false
	}
	return r.e.Header.Nth(name, i)
}

// Takes reports whether the entry is logged. random decides fractions.
func (f *LogFilter) Takes(e *accesslog.Entry, random uint64) bool {
	if f == nil {
		return true
	}
	if f.AnyFlag && e.Flags == 0 || f.Flags != 0 && e.Flags&f.Flags == 0 {
		return false
	}
	if f.Status != nil && !f.Status.Holds(uint64(e.ResponseCode)) {
		return false
	}
	if f.Duration != nil && !f.Duration.Holds(uint64(e.Duration.Milliseconds())) {
		return false
	}
	if f.Fraction != nil && !f.Fraction.Takes(random) {
		return false
	}
	if f.Header != nil && !f.Header.Match(entryRequest{e}) {
		return false
	}
	for _, g := range f.And {
		if !g.Takes(e, random) {
			return false
		}
	}
	if len(f.Or) == 0 {
		return true
	}
	for _, g := range f.Or {
		if g.Takes(e, random) {
			return true
		}
	}
	return false
}

// folderOf refuses a file whose folder is not there: its lines would be lost.
func folderOf(path string) error {
	if i, err := os.Stat(filepath.Dir(path)); err != nil {
		return fmt.Errorf("its folder: %w", err)
	} else if !i.IsDir() {
		return fmt.Errorf("%s is not a folder", filepath.Dir(path))
	}
	return nil
}
