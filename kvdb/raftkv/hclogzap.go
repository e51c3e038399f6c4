package raftkv

import (
	"io"
	"log"
	"slices"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// hclogZap is the hclog.Logger that raft writes to. Levels are
// decided by the zap.Logger alone.
type hclogZap struct {
	lg   *zap.Logger
	name string
	args []any
}

var _ hclog.Logger = (*hclogZap)(nil)

func newHCLog(lg *zap.Logger) *hclogZap { return &hclogZap{lg: lg.WithOptions(zap.AddCallerSkip(1))} }

func zapLevel(l hclog.Level) zapcore.Level {
	switch l {
	case hclog.Error:
		return zapcore.ErrorLevel
	case hclog.Warn:
		return zapcore.WarnLevel
	case hclog.Info:
		return zapcore.InfoLevel
	default:
		return zapcore.DebugLevel
	}
}

func (h *hclogZap) write(l hclog.Level, msg string, args []any) {
	e := h.lg.Check(zapLevel(l), msg)
	if e == nil {
		return
	}
	e.Write(zapFields(args)...)
}

// zapFields pairs up keys and values as hclog does; a value without a key is kept too.
func zapFields(args []any) []zap.Field {
	fields := make([]zap.Field, 0, (len(args)+1)/2)
	for len(args) > 0 {
		key, ok := args[0].(string)
		if !ok || len(args) == 1 {
			fields = append(fields, zap.Any("extra", args[0]))
			args = args[1:]
			continue
		}
		value := args[1]
		if format, ok := value.(hclog.Format); ok && len(format) > 0 {
			value = format[1:]
		}
		fields = append(fields, zap.Any(key, value))
		args = args[2:]
	}
	return fields
}

func (h *hclogZap) Log(l hclog.Level, msg string, args ...any) { h.write(l, msg, args) }
func (h *hclogZap) Trace(msg string, args ...any)              { h.write(hclog.Trace, msg, args) }
func (h *hclogZap) Debug(msg string, args ...any)              { h.write(hclog.Debug, msg, args) }
func (h *hclogZap) Info(msg string, args ...any)               { h.write(hclog.Info, msg, args) }
func (h *hclogZap) Warn(msg string, args ...any)               { h.write(hclog.Warn, msg, args) }
func (h *hclogZap) Error(msg string, args ...any)              { h.write(hclog.Error, msg, args) }

func (h *hclogZap) enabled(l hclog.Level) bool { return h.lg.Core().Enabled(zapLevel(l)) }

func (h *hclogZap) IsTrace() bool { return h.enabled(hclog.Trace) }
func (h *hclogZap) IsDebug() bool { return h.enabled(hclog.Debug) }
func (h *hclogZap) IsInfo() bool  { return h.enabled(hclog.Info) }
func (h *hclogZap) IsWarn() bool  { return h.enabled(hclog.Warn) }
func (h *hclogZap) IsError() bool { return h.enabled(hclog.Error) }

func (h *hclogZap) ImpliedArgs() []any { return slices.Clone(h.args) }

func (h *hclogZap) With(args ...any) hclog.Logger {
	return &hclogZap{lg: h.lg.With(zapFields(args)...), name: h.name, args: slices.Concat(h.args, args)}
}

func (h *hclogZap) Name() string { return h.name }

func (h *hclogZap) Named(name string) hclog.Logger {
	full := name
	if h.name != "" {
		full = h.name + "." + name
	}
	return &hclogZap{lg: h.lg.Named(name), name: full, args: h.args}
}

func (h *hclogZap) ResetNamed(name string) hclog.Logger {
	return &hclogZap{lg: h.lg, name: name, args: h.args}
}

func (h *hclogZap) SetLevel(hclog.Level) {}

func (h *hclogZap) GetLevel() hclog.Level {
	for l := hclog.Debug; l <= hclog.Error; l++ {
		if h.enabled(l) {
			return l
		}
	}
	return hclog.Off
}

func (h *hclogZap) StandardLogger(*hclog.StandardLoggerOptions) *log.Logger {
	return zap.NewStdLog(h.lg)
}

func (h *hclogZap) StandardWriter(*hclog.StandardLoggerOptions) io.Writer {
	return zap.NewStdLog(h.lg).Writer()
}
