#!lua
-- Appends an entry to a task's stream, once: what was written before is known by its number.
-- KEYS[1] the stream; its ids are `<number>-0`
-- KEYS[2] its heads: `last`, the last number; for each scope `<run> <execution> <last number>`
-- ARGV    scope, execution, number within the scope, kind, JSON, entries to keep, seconds to keep
local heads = redis.call('HMGET', KEYS[2], ARGV[1], 'last')
local number = tonumber(ARGV[3])
local run, restarts = 1, false
if heads[1] then
  local was, execution, written = string.match(heads[1], '^(%d+) (%S+) (%d+)$')
  run = tonumber(was) or 1
  if execution == ARGV[2] then
    if number <= tonumber(written) then
      return 0
    end
  elseif number > 1 then
    -- A later execution has taken this one's place.
    return 0
  else
    run, restarts = run + 1, true
  end
end

local last = tonumber(heads[2])
if not last then
  local entry = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  last = entry and tonumber(string.match(entry[1], '^%d+')) or 0
end

local function append(kind, json)
  last = last + 1
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[6], last .. '-0',
    'v', '1', 'kind', kind, 'scope', ARGV[1], 'run', run, 'json', json)
end

if restarts then
  append('restarted', 'null')
end
if number > 0 then
  append(ARGV[4], ARGV[5])
end
redis.call('HSET', KEYS[2], ARGV[1], run .. ' ' .. ARGV[2] .. ' ' .. number,
  'last', last)
-- An hour more or less does not matter.
if redis.call('TTL', KEYS[1]) + 3600 < tonumber(ARGV[7]) then
  redis.call('EXPIRE', KEYS[1], ARGV[7])
  redis.call('EXPIRE', KEYS[2], ARGV[7])
end
return 1
