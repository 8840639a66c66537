-- A session's beginning and its events, of one instant.
--
-- KEYS  session, events
-- ARGV  1 how much of the state is its beginning, in bytes
-- Returns {beginning, {entry, ...}}.

return { redis.call('GETRANGE', KEYS[1], 0, ARGV[1] - 1), redis.call('XRANGE', KEYS[2], '-', '+') }
