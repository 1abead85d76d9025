-- Appends an entry to a task's stream once: an entry that was written before is recognized by its
-- number.
-- KEYS[1] the stream; its ids are `<number>-0`
-- KEYS[2] its heads: `last`, the last number; `digest`, the owner; for each scope
--         `<run> <execution> <last number>`
-- ARGV    scope, execution, number within the scope, kind, JSON, entries to keep, seconds to keep,
--         digest of the task, 1 for a fresh run
local function newest()
  local entry = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
  return entry and tonumber(string.match(entry[1], '^%d+')) or 0
end

local digest = ARGV[8]
local owner = redis.call('HGET', KEYS[2], 'digest')
if owner ~= digest then
  local is_own = owner == digest .. ' ended'
  local is_replaced = owner and not (is_own and ARGV[9] ~= '1')
  local is_new = redis.call('EXISTS', KEYS[2]) == 0
  if is_replaced then
    -- It belongs to another task, or an earlier run of the same id left it. Numbering continues for its
    -- readers.
    local last = redis.call('HGET', KEYS[2], 'last') or newest()
    redis.call('DEL', KEYS[1], KEYS[2])
    redis.call('HSET', KEYS[2], 'last', last)
  end
  -- A stream without an owner was started by an older worker, and stays as it is.
  if owner or is_new then
    redis.call('HSET', KEYS[2], 'digest', digest)
  end
end

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
    -- A later execution has replaced this one.
    return 0
  else
    run, restarts = run + 1, true
  end
end

local last = tonumber(heads[2])
if not last then
  last = newest()
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
-- A precision of one hour suffices, and saves most EXPIRE calls.
if redis.call('TTL', KEYS[1]) + 3600 < tonumber(ARGV[7]) then
  redis.call('EXPIRE', KEYS[1], ARGV[7])
  redis.call('EXPIRE', KEYS[2], ARGV[7])
end
return 1
