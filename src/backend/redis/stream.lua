#!lua
-- Appends an entry to a task's stream, once: what was written before is known by its number.
-- KEYS[1] the stream; its ids are `<number>-0`
-- KEYS[2] its heads: `next`, the last number; for each scope `<run> <execution> <last number>`
-- ARGV    scope, execution, number within the scope, kind, JSON, entries to keep, seconds to keep
local head = redis.call('HGET', KEYS[2], ARGV[1])
local number = tonumber(ARGV[3])
local run, restarts = 1, false
if head then
  local was, execution, last = string.match(head, '^(%d+) (%S+) (%d+)$')
  run = tonumber(was) or 1
  if execution == ARGV[2] then
    if number <= tonumber(last) then
      return 0
    end
  elseif number > 1 then
    -- A later execution has taken this one's place.
    return 0
  else
    run, restarts = run + 1, true
  end
end

local function append(kind, json)
  if redis.call('HEXISTS', KEYS[2], 'next') == 0 then
    local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
    redis.call('HSET', KEYS[2], 'next', last and string.match(last[1], '^%d+') or '0')
  end
  local id = string.format('%.0f-0', redis.call('HINCRBY', KEYS[2], 'next', 1))
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[6], id,
    'v', '1', 'kind', kind, 'scope', ARGV[1], 'run', run, 'json', json)
end

if restarts then
  append('restarted', 'null')
end
if number > 0 then
  append(ARGV[4], ARGV[5])
end
redis.call('HSET', KEYS[2], ARGV[1], string.format('%d %s %d', run, ARGV[2], number))
redis.call('EXPIRE', KEYS[1], ARGV[7])
redis.call('EXPIRE', KEYS[2], ARGV[7])
return 1
