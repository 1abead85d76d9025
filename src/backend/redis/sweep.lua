-- Returns entries of the outbox that are not known to be sent. Sets their score to now, which hides
-- them from other sweepers. Adds the tasks whose requests are overdue.
-- KEYS[1] the outbox
-- KEYS[2] the index of open requests
-- ARGV    age in ms, limit, retention of a finished request in seconds
-- Returns the entries.
local now = now_in_ms()
local old = whole(now - tonumber(ARGV[1]))
local entries = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', old, 'LIMIT', 0, ARGV[2])
for _, entry in ipairs(entries) do
  redis.call('ZADD', KEYS[1], whole(now), entry)
end
for _, entry in ipairs(tidy(KEYS[2], KEYS[1], now, ARGV[2], ARGV[3])) do
  entries[#entries + 1] = entry
end
return entries
