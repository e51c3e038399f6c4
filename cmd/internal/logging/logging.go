// Package logging builds the one *zap.Logger of a daemon. Everybody else gets it
// injected; there is no global.
package logging

import (
	"fmt"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/tandem-storage/tandem/cmd/internal/config"
)

// New returns a logger that writes to w, usually os.Stderr, as c says, and the level
// through which it can be made louder or quieter while running. Both are safe for concurrent use.
// Lines are never sampled: house rules keep the log off the I/O path.
func New(c config.Log, w zapcore.WriteSyncer) (*zap.Logger, zap.AtomicLevel, error) {
	level, err := zap.ParseAtomicLevel(c.Level)
	if err != nil {
		return nil, zap.AtomicLevel{}, fmt.Errorf("%w: log.level: %w", config.ErrInvalid, err)
	}
	ec := zap.NewProductionEncoderConfig()
	ec.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	ec.EncodeDuration = zapcore.StringDurationEncoder
	var enc zapcore.Encoder
	switch c.Format {
	case config.LogJSON:
		enc = zapcore.NewJSONEncoder(ec)
	case config.LogConsole:
		ec.EncodeLevel = zapcore.CapitalLevelEncoder
		enc = zapcore.NewConsoleEncoder(ec)
	default:
		return nil, zap.AtomicLevel{}, fmt.Errorf("%w: log.format: %q is not known here", config.ErrInvalid, c.Format)
	}
	lg := zap.New(zapcore.NewCore(enc, zapcore.Lock(w), level),
		zap.AddCaller(), zap.AddStacktrace(zapcore.DPanicLevel), zap.ErrorOutput(zapcore.Lock(w)))
	return lg, level, nil
}
